"""What a latent reveals to a surrogate inverter, and what two latents of one volume reveal by their difference.

    python -m benchmarks.calibration.leaks            satellite -> relief, and heads: measure what is missing
    python -m benchmarks.calibration.leaks --smoke    four pairs of slices at 8 evaluations; writes nothing

For each share and depth, latents of pictures of the source's training part and their pictures fit the surrogates
(`lab.report`), and latents of the test part are inverted: PSNR and SSIM of what is read, and how often
the nearest of all test pictures is the right one. Latents of partial depth are read off on the way to full depth. A
calibrated latent is the plain one, rotated by a matrix that the contract holds, so it reveals the same. Latents are
kept in build/calibration/leaks. One thread, float32; intervals are bootstrapped over clusters of pictures.

Of two slices of a head, one has a planted lesion. The attacker holds no model: it subtracts the latents, blurs the
difference and looks where it is largest. The other slice is the same one without the lesion, or its true neighbour.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from benchmarks import options
from benchmarks.calibration.directed import OUT, ROOT, Directed
from ddib_fed import metrics
from ddib_fed.datasets import shipped_bytes
from ddib_fed.engine.model import DomainModel
from ddib_fed.files import write_json
from ddib_fed.lab.report import Latents, correlation_matrix, fit_inverter, latents_along
from ddib_fed.metrics import compare, whiteness
from ddib_fed.model import Model
from ddib_fed.models.bundle import pretrained

MODES = (*((1.0, depth) for depth in (1.0, 0.85, 0.7, 0.5, 0.3)), (0.75, 1.0), (0.5, 1.0))
ALONG = {1.0: (0.3, 0.5, 0.7, 0.85)}
LESIONS = OUT / "lesions.json"
HEADS = ("brain-t1", "brain-t2")
PAIRS, RADIUS, BRIGHTER, BLUR = 24, 2.5, 0.4, 1.5
"""Pairs of slices; of a lesion, pixels, and a fifth of the range of values; of the attacker's blur, pixels."""


def main() -> int:
    """Measure all modes that have no file for these models and numbers."""
    parser = options(__doc__)
    parser.add_argument("--pair", nargs=2, default=("satellite", "relief"), metavar=("SOURCE", "TARGET"))
    parser.add_argument("--known", type=int, default=512, help="latents that the surrogates are fitted to")
    parser.add_argument("--evaluations", type=int, default=24, help="of encoding")
    parser.add_argument("--steps", type=int, default=200, help="of the surrogate network's training")
    parser.add_argument("--smoke", action="store_true", help="a minute at most; writes nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.smoke:
        print(json.dumps(lesions(HEADS[0], 4, 8), indent=1))
        return 0
    write_json(LESIONS, {"heads": [lesions(head, PAIRS, given.evaluations) for head in HEADS]})
    directed = Directed(*given.pair)
    model = directed.parties[0].model
    asked = {
        "models": [bundle.digest for bundle in directed.bundles],
        "known": given.known,
        "evaluations": given.evaluations,
        "surrogate_steps": given.steps,
    }
    train = directed.pictures[0].train
    known = train[np.linspace(0, len(train) - 1, given.known).round().astype(int)]
    units = [model.normalise(each) for each in (known, directed.test[0])]
    for share, depth in MODES:
        path = OUT / "leaks" / directed.name / f"{share:g}-{depth:g}.json"
        if _there(path, asked):
            continue
        z = tuple(
            _kept(directed, model, x, share, given.evaluations, seed)[depth]
            for seed, x in zip((1, 0), units, strict=True)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _leak(directed, (z[0], z[1]), units, given)
        write_json(path, {**asked, "share": share, "depth": depth, "leak": found})
        print(path.stem, f"{found['psnr_read']['value']:.1f} dB", flush=True)
    return 0


def lesions(head: str, pairs: int, evaluations: int) -> dict[str, Any]:
    """How many planted lesions the difference of two latents shows, with one draw of noise for both and with two."""
    model, generator = DomainModel(pretrained(head)), np.random.default_rng(0)
    slices = shipped_bytes(head, ["test"])[0].astype(np.float32) / 127.5 - 1.0
    plain, neighbours = slices[: 2 * pairs : 2], slices[1 : 2 * pairs : 2]
    planted, places = plain.copy(), np.empty((pairs, 2))
    rows, columns = np.indices(plain.shape[2:])
    for place, (picture,) in zip(places, planted, strict=True):
        brain = ndimage.binary_erosion(ndimage.binary_fill_holes(picture > -0.7), iterations=6)
        place[:] = generator.choice(np.argwhere(brain))
        lesion = np.hypot(rows - place[0], columns - place[1]) <= RADIUS
        picture[lesion] = np.minimum(picture[lesion] + BRIGHTER, 1.0)

    def latents(pictures: np.ndarray, seed: int) -> np.ndarray:
        sigma, x = model.manifest.soften_sigma, model.normalise(pictures)
        return latents_along(Model(model.bundle), x, evaluations=evaluations, sigma=sigma, seed=seed)[1.0]

    def found(others: np.ndarray, seed: int) -> int:
        seen = np.abs(ndimage.gaussian_filter(z - latents(others, seed), (0, 0, BLUR, BLUR)))[:, 0]
        at = np.stack(np.unravel_index(seen.reshape(pairs, -1).argmax(1), seen.shape[1:]), axis=1)
        return int((np.hypot(*(at - places).T) <= RADIUS + 1).sum())

    z = latents(planted, seed=1)
    rows_of_noise = {
        noise: {"same": found(plain, seed), "next": found(neighbours, seed)}
        for noise, seed in (("one", 1), ("own", 2))
    }
    return {
        "head": head,
        "model": model.bundle.digest,
        "pairs": pairs,
        "evaluations": evaluations,
        "chance": float(np.pi * (RADIUS + 1) ** 2 / rows.size),
        **rows_of_noise,
    }


def _leak(
    directed: Directed,
    z: tuple[np.ndarray, np.ndarray],
    units: list[np.ndarray],
    given: argparse.Namespace,
) -> dict[str, Any]:
    """Of latents and pictures in the model's units, each of the known pictures and of the test pictures."""
    drawn, x = directed.drawn, directed.test[0]
    surrogate = fit_inverter(z[0], units[0], steps=given.steps)
    read = np.clip(directed.parties[0].model.denormalise(surrogate.inverse(z[1])), -1.0, 1.0)
    same, white = compare(read, x), whiteness(torch.from_numpy(z[1]))
    return {
        "surrogate": surrogate.name,
        "correlation": drawn.mean(np.diagonal(correlation_matrix(z[1], units[1]))),
        "psnr_read": drawn.mean(same.psnr),
        "ssim_read": drawn.mean(same.ssim),
        "re_identified": drawn.mean(metrics.hits_by_pixels(read, x, nearest=1)),
        "chance": 1.0 / len(x),
        "latent_ratio": white.ratio,
        "latent_std": white.latent.std,
    }


def _kept(
    directed: Directed, model: DomainModel, x: np.ndarray, share: float, evaluations: int, seed: int
) -> Latents:
    """Latents of x that an earlier run left, or new ones."""
    name = f"{directed.source_name}-{share:g}-{evaluations}-{seed}-{len(x)}.npz"
    path = ROOT / "build" / "calibration" / "leaks" / model.bundle.digest[:12] / name
    if path.exists():
        with np.load(path) as there:
            return {float(depth): there[depth] for depth in there.files}
    sigma = model.manifest.soften_sigma
    found = latents_along(
        Model(model.bundle),
        x,
        depths=ALONG.get(share, ()),
        share=share,
        evaluations=evaluations,
        sigma=sigma,
        seed=seed,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{str(depth): z for depth, z in found.items()})  # type: ignore[arg-type]
    return found


def _there(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return there if all(there.get(key) == value for key, value in asked.items()) else {}


if __name__ == "__main__":
    sys.exit(main())

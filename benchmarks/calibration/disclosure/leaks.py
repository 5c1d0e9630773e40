"""What a latent reveals: correlation with its picture, and what a surrogate inverter makes of it.

    python -m benchmarks.calibration.disclosure.leaks                satellite -> relief, measure what is missing
    python -m benchmarks.calibration.disclosure.leaks --report       only the table of docs/latents.md

For each encoder and depth: latents of pictures of the source's training part and their pictures fit the surrogates
(`lab.attacks`), latents of the test part are inverted. PSNR and SSIM of what is read, and how often the
picture among all test pictures that is nearest to it is the right one; beside them the quality of the translation of
the same latents, with a rotation and, at full depth, without, for every second picture. Latents of partial depth are
read off on the way to full depth, at exactly that level.

A calibrated latent is the plain one, rotated by a matrix that the contract holds, so it reveals the same: whoever reads
one turns the other back. The rotation is the one that `ANCHORS` pairs of training pictures give, by their pixels.
Latents are kept in build/calibration/leaks. One thread, float32; intervals are bootstrapped over clusters of pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.calibration.directed import BUILD, OUT, Directed
from ddib_fed.bridge.calibration.fitting.rotation import nearest_orthogonal
from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.files import write_file, write_json
from ddib_fed.lab.attacks import correlation_matrix, fit_inverter
from ddib_fed.lab.report import Latents, latents_along
from ddib_fed.metrics import bootstrap, features, retrieval
from ddib_fed.metrics.latents import whiteness
from ddib_fed.metrics.pictures import compare

LEAKS = OUT / "leaks"
PAGE = OUT.parents[1] / "latents.md"
MODES = (
    *(("ode", depth) for depth in (1.0, 0.85, 0.7, 0.5, 0.3)),
    ("mixed", 1.0),
)
HEAD = """\
| encoder | depth | calibration | patch correlation / noise's | correlation | read, dB | read, SSIM | found | PSNR dB | SSIM | partner | distance |
|---|---|---|---|---|---|---|---|---|---|---|---|"""  # noqa: E501
KINDS = ("none", "rotation")
QUALITY = {"psnr": 1, "ssim": 3, "partner": 2, "frechet_early": 0}
ALONG = {"ode": (0.3, 0.5, 0.7, 0.85), "mixed": ()}
TOGETHER = 16
ANCHORS = 32
DECODING, EVERY = 32, 2
"""Evaluations of decoding, and which test pictures the quality is of: every second one."""
QUALITY_OF = [DECODING, EVERY]


def main() -> int:
    """Measure what is missing, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", nargs=2, default=("satellite", "relief"), metavar=("SOURCE", "TARGET"))
    parser.add_argument(
        "--known", type=int, default=512, help="pictures whose latents the surrogates are fitted to"
    )
    parser.add_argument("--evaluations", type=int, default=24, help="of encoding")
    parser.add_argument("--steps", type=int, default=200, help="of the surrogate network's training")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    directed = Directed(*given.pair)
    if not given.report:
        measure(directed, given)
    text = PAGE.read_text(encoding="utf-8")
    begin, end = (
        "<!-- leaks: written by benchmarks/calibration/disclosure/leaks.py -->",
        "<!-- end of leaks -->",
    )
    before, rest = text.split(begin)
    write_file(PAGE, f"{before}{begin}\n\n{table(directed)}\n\n{end}{rest.split(end)[1]}".encode())
    return 0


def measure(directed: Directed, given: argparse.Namespace) -> None:
    """All modes that have no file for these models and numbers."""
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
    rotation = _rotation(directed)
    for kind in reversed(KINDS):  # what costs least to leave out comes last
        for encoder, depth in sorted(MODES, key=lambda mode: _path(directed, *mode).exists()):
            if kind == "none" and depth < 1.0:
                continue
            path = _path(directed, encoder, depth)
            found: dict[str, Any] = {**asked, "encoder": encoder, "depth": depth, **_there(path, asked)}
            if found.get(kind, {}).get("of") == QUALITY_OF:
                continue
            known_z, z = (
                _kept(directed, model, x, encoder, given.evaluations, seed)[depth]
                for seed, x in zip((1, 0), units, strict=True)
            )
            if "leak" not in found:
                found["leak"] = _leak(directed, (known_z, z), units, given)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, found)
            found[kind] = _quality(directed, _turned(z, rotation if kind == "rotation" else None), depth)
            write_json(path, found)
            print(path.stem, kind, f"{found[kind]['psnr']['value']:.1f} dB", flush=True)


def _quality(directed: Directed, z: np.ndarray, depth: float) -> dict[str, Any]:
    """Of the translations of every `EVERY`th latent; the partner is looked for among all test pictures."""
    truth = directed.test[1]
    rows = np.arange(0, len(truth), EVERY)
    translated = _decoded(directed, z[rows], depth)
    drawn = bootstrap.resample(len(rows), directed.clusters[rows])
    same, every = compare(translated, truth[rows]), truth.copy()
    every[rows] = translated
    distances = bootstrap.feature_distances(features.features(translated), directed.real, drawn)
    return {
        "of": QUALITY_OF,
        "count": len(rows),
        "psnr": drawn.mean(same.psnr),
        "ssim": drawn.mean(same.ssim),
        "partner": drawn.mean(retrieval.hits_by_pixels(every, truth)[rows]),
        "frechet_early": distances["frechet_early"],
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
        "surrogate_errors": surrogate.errors,
        "correlation": drawn.mean(np.diagonal(correlation_matrix(z[1], units[1]))),
        "psnr_read": drawn.mean(same.psnr),
        "ssim_read": drawn.mean(same.ssim),
        "re_identified": drawn.mean(retrieval.hits_by_pixels(read, x, nearest=1)),
        "chance": 1.0 / len(x),
        "latent_ratio": white.ratio,
        "latent_std": white.latent.std,
    }


def _kept(
    directed: Directed, model: DomainModel, x: np.ndarray, encoder: str, evaluations: int, seed: int
) -> Latents:
    """Latents of x that an earlier run left, or new ones."""
    name = f"{directed.source_name}-{encoder}-{evaluations}-{seed}-{len(x)}.npz"
    path = BUILD / "leaks" / model.bundle.digest[:12] / name
    if path.exists():
        with np.load(path) as there:
            return {float(depth): there[depth] for depth in there.files}
    sigma = model.manifest.soften_sigma
    found = latents_along(
        model, x, depths=ALONG[encoder], encoder=encoder, evaluations=evaluations, sigma=sigma, seed=seed
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{str(depth): z for depth, z in found.items()})  # type: ignore[arg-type]
    return found


def _decoded(directed: Directed, z: np.ndarray, depth: float) -> np.ndarray:
    """The target's translations of latents, in [-1, 1]."""
    party = directed.parties[1]
    laid = plan(SolverSettings(evaluations=DECODING, depth=depth), party.model.bundle.schedule)
    parts = [
        integrate(laid.decoder(part), party.model.plain)
        for part in torch.split(torch.from_numpy(z), TOGETHER)
    ]
    return np.clip(party.model.denormalise(torch.cat(parts).numpy()), -1.0, 1.0)


def _rotation(directed: Directed) -> Tensor:
    """R of the least squared difference of the pixels of pairs, centred, in both models' units (Schoenemann, 1966)."""
    sides = zip(directed.bundles, directed.pairs(ANCHORS, seed=0), strict=True)
    u, v = (
        np.moveaxis(bundle.manifest.normalisation.plain.apply(x), 1, 0).reshape(x.shape[1], -1)
        for bundle, x in sides
    )
    u, v = (each.astype(np.float64) - each.mean(1, keepdims=True) for each in (u, v))
    return torch.from_numpy(nearest_orthogonal(v @ u.T)).float()


def _turned(z: np.ndarray, rotation: Tensor | None) -> np.ndarray:
    return z if rotation is None else torch.einsum("ij,njhw->nihw", rotation, torch.from_numpy(z)).numpy()


def _path(directed: Directed, encoder: str, depth: float) -> Path:
    return LEAKS / directed.name / f"{encoder}-{depth:g}.json"


def _there(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return there if all(there.get(key) == value for key, value in asked.items()) else {}


def table(directed: Directed) -> str:
    """The table of docs/latents.md."""
    paths = [(encoder, depth, _path(directed, encoder, depth)) for encoder, depth in MODES]
    rows, about = [], {}
    for encoder, depth, path in paths:
        if not path.exists():
            continue
        about = json.loads(path.read_text(encoding="utf-8"))
        leak = about["leak"]
        revealed = [
            f"{leak['latent_ratio']:.2f}",
            _said(leak["correlation"], 2),
            _said(leak["psnr_read"], 1),
            _said(leak["ssim_read"], 2),
            _said(leak["re_identified"], 2),
        ]
        for kind in KINDS:
            if (quality := about.get(kind)) is not None:
                gained = [_said(quality[name], digits) for name, digits in QUALITY.items()]
                cells = [encoder, f"{depth:g}", "–" if kind == "none" else kind, *revealed, *gained]
                rows.append(f"| {' | '.join(cells)} |")
    if not about:
        return ""
    parts = (
        f"{directed.source_name} → {directed.target_name}, {len(directed.test[0])} test pictures,",
        f"{about['evaluations']} evaluations of encoding and {DECODING} of decoding, surrogates fitted to",
        f"{about['known']} latents of other pictures. Found: the nearest of all test pictures is the right one, by",
        f"chance {about['leak']['chance']:.3f} of the time. Quality is that of every second picture; a feature",
        "distance of fewer pictures is larger. Intervals of 95 %.",
    )
    return "\n".join([" ".join(parts), "", HEAD, *rows])


def _said(figure: dict[str, float], digits: int) -> str:
    return f"{figure['value']:.{digits}f} ({figure['low']:.{digits}f}–{figure['high']:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())

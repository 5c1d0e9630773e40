"""What a latent reveals: correlation with its picture, and what a surrogate inverter makes of it.

    python -m benchmarks.calibration.leaks          satellite -> relief, measure what is missing

For each share and depth, latents of pictures of the source's training part and their pictures fit the surrogates
(`lab.report`), and latents of the test part are inverted: PSNR and SSIM of what is read, and how often
the nearest of all test pictures is the right one. Latents of partial depth are read off on the way to full depth. A
calibrated latent is the plain one, rotated by a matrix that the contract holds, so it reveals the same. Latents are
kept in build/calibration/leaks. One thread, float32; intervals are bootstrapped over clusters of pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.directed import BUILD, OUT, Directed
from ddib_fed.engine.model import DomainModel
from ddib_fed.evaluation import metrics
from ddib_fed.evaluation.metrics import compare, whiteness
from ddib_fed.files import write_json
from ddib_fed.lab.report import Latents, correlation_matrix, fit_inverter, latents_along

MODES = (*((1.0, depth) for depth in (1.0, 0.85, 0.7, 0.5, 0.3)), (0.75, 1.0), (0.5, 1.0))
ALONG = {1.0: (0.3, 0.5, 0.7, 0.85)}


def main() -> int:
    """Measure all modes that have no file for these models and numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", nargs=2, default=("satellite", "relief"), metavar=("SOURCE", "TARGET"))
    parser.add_argument("--known", type=int, default=512, help="latents that the surrogates are fitted to")
    parser.add_argument("--evaluations", type=int, default=24, help="of encoding")
    parser.add_argument("--steps", type=int, default=200, help="of the surrogate network's training")
    given = parser.parse_args()
    torch.set_num_threads(1)
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
    path = BUILD / "leaks" / model.bundle.digest[:12] / name
    if path.exists():
        with np.load(path) as there:
            return {float(depth): there[depth] for depth in there.files}
    sigma = model.manifest.soften_sigma
    found = latents_along(
        model, x, depths=ALONG.get(share, ()), share=share, evaluations=evaluations, sigma=sigma, seed=seed
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{str(depth): z for depth, z in found.items()})  # type: ignore[arg-type]
    return found


def _there(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return there if all(there.get(key) == value for key, value in asked.items()) else {}


if __name__ == "__main__":
    sys.exit(main())

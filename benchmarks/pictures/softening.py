"""What softening costs and gives: whiteness of latents, round trip and translation at several levels of noise.

    python -m benchmarks.pictures.softening [--pairs brain] [--count 64]

Test pictures of ground that no model was trained on, 48 evaluations a leg, one thread, float32. One JSON a level under
docs/benchmarks/pictures; one that is there for the same models is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddib_fed.data.shipped import load_shipped
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.evaluation.metrics import compare, psnr, spread, whiteness
from ddib_fed.files import write_json
from ddib_fed.models.bundle import pretrained
from tests.engine.stages import translate_array

OUT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "pictures"
PAIRS = {"satellite-relief": ("satellite", "relief"), "brain": ("brain-t1", "brain-t2")}
SIGMAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--count", type=int, default=64, help="test pictures, evenly spaced")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for pair in given.pairs:
        bundles = [pretrained(domain) for domain in PAIRS[pair]]
        digests = [b.manifest.model_copy(update={"structure": None}).digest() for b in bundles]
        for sigma in SIGMAS:
            path = OUT / pair / f"softening-{sigma:g}.json"
            if path.exists() and json.loads(path.read_text(encoding="utf-8"))["digests"] == digests:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"pair": pair, "digests": digests, **measured(pair, given.count, sigma)})
            print(path, flush=True)


def measured(pair: str, count: int, sigma: float) -> dict[str, Any]:
    """Figures of the test pictures at one level."""
    x, truth = (load_shipped(domain).test for domain in PAIRS[pair])
    rows = np.linspace(0, len(x) - 1, min(count, len(x))).round().astype(int)
    sides = [open_party(pretrained(domain)) for domain in PAIRS[pair]]
    started = time.process_time()
    asked = ArraySettings(SolverSettings(evaluations=48), soften=sigma, cycle=True)
    found = translate_array(x[rows], *sides, asked)
    assert found.back is not None
    white, same = whiteness(torch.from_numpy(found.latent)), compare(found.translated, truth[rows])
    return {
        "soften_sigma": sigma,
        "count": len(rows),
        "latent": {
            **asdict(white.latent),
            "noise_correlation": white.noise.correlation,
            "ratio": white.ratio,
        },
        "paired": {key: float(getattr(same, key).mean()) for key in ("mse", "psnr", "ssim")},
        "cycle_psnr": dict(spread(psnr(found.back, x[rows]))),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


if __name__ == "__main__":
    main()

"""Heads with a tone curve from 8 anchors, the source's model retrained on its mapped pictures; both directions.

    python -m benchmarks.calibration.anchors --fit --train --measure [--pairs PAIR] [--seeds 0]

Anchors are sheets through the slabs that the source alone is trained on, in both contrasts: as if one subject had
travelled to both scanners. None is in the test part, and the target's model has seen none of them. A seed chooses the
anchors and is the seed of the retraining. `--fit` writes build/calibrated/SOURCE-TARGET-SEED.json, `--train` the bundle
SOURCE-TARGET-SEED beside it, `--measure` one JSON a seed below docs/benchmarks/calibration/anchors of all test
slices.

A round trip is compared with the source's own picture, through the inverse of the curve (`cycle_psnr`), and in the
contrast that the curve leads to (`cycle_psnr_mapped`).
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options
from benchmarks.calibration.directed import NAMED, OUT, ROOT, Directed
from ddib_fed.calibration.fit import fit
from ddib_fed.calibration.record import CalibratedSide, Calibration, Making
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.files import write_json
from ddib_fed.metrics import psnr
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from tests.engine.stages import translate_array

HEADS = ("brain-t1-brain-t2", "brain-t2-brain-t1")
ANCHORS = 8
STEPS, BATCH = 500, 16
"""Of the retraining: about 140 s of one core."""
SOFTENING = 0.02
"""Noise level from which the ODE encodes: with the shipped bundles' 0.1 no round trip is above about 30 dB."""
WAYS = ((1.0, SOFTENING, 1.0), (0.85, SOFTENING, 1.0), (0.7, SOFTENING, 1.0))
"""Depth, softening and share that every seed is measured with."""
DAYS = 365


def main() -> int:
    """Do what was asked, for each direction and seed."""
    parser = options(__doc__)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--pairs", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "calibrated")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for pair in asked.pairs:
        directed = Directed(*NAMED[pair])
        for seed in asked.seeds:
            where = asked.out / f"{pair}-{seed}"
            file = asked.out / f"{pair}-{seed}.json"
            if asked.fit:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.unlink(missing_ok=True)
                calibrate(directed, seed).save(file)
            if asked.train:
                train(retraining(directed, file, seed), where, _tell, resume=True, say=print)
            if asked.measure:
                result = OUT / "anchors" / f"{pair}-{seed}.json"
                result.parent.mkdir(parents=True, exist_ok=True)
                before = json.loads(result.read_bytes()) if result.exists() else {}
                write_json(result, measured(directed, where, seed, before))
    return 0


def calibrate(directed: Directed, seed: int) -> Calibration:
    """The curve from anchors of this seed."""
    source, target = directed.pairs(ANCHORS, seed)
    units = tuple(bundle.manifest.normalisation for bundle in directed.bundles)
    proposal = fit(source, target, (units[0], units[1]), "tone", seed=seed)
    now = datetime.now(UTC)
    names = (directed.source_name, directed.target_name)
    sides = [CalibratedSide(domain=name, units=unit) for name, unit in zip(names, units, strict=True)]
    return Calibration(
        kind="tone",
        source=sides[0],
        target=sides[1],
        map=proposal.map,
        made=Making(
            method="anchors",
            anchors=ANCHORS,
            command=f"python -m benchmarks.calibration.anchors --fit --pairs {directed.name} --seeds {seed}",
            created=now,
        ),
        effect=proposal.effect,
        expires=now + timedelta(days=DAYS),
    )


def retraining(directed: Directed, calibration: Path, seed: int) -> TrainConfig:
    """What `ddib model train --init OWN --calibration FILE` does."""
    name = directed.source_name
    return TrainConfig(
        kind="pictures",
        domain=name,
        init=ROOT / "ddib_fed" / "models" / "pretrained" / name,
        calibration=calibration,
        seed=seed,
        steps=STEPS,
        batch=BATCH,
        microbatch=BATCH,
        command=f"python -m benchmarks.calibration.anchors --train --pairs {directed.name} --seeds {seed}",
    )


def measured(directed: Directed, where: Path, seed: int, before: dict[str, Any]) -> dict[str, Any]:
    """Figures of the retrained bundle for each depth, softening and share; what `before` has of it is kept."""
    bundle = load_bundle(where)
    kept = before["runs"] if before.get("digest") == bundle.digest else []
    there = {(run["depth"], run["soften_sigma"], run["share"]) for run in kept}
    units = bundle.manifest.normalisation
    parties = open_party(bundle), directed.parties[1]
    x = directed.test[0]
    # What the map alone makes of the sources, with the units of the target's model.
    mapped = np.clip(directed.bundles[1].manifest.normalisation.undo(units.apply(x)), -1, 1)
    found: dict[str, Any] = {
        "source": directed.source_name,
        "target": directed.target_name,
        "seed": seed,
        "digest": bundle.digest,
        "cpu_seconds_of_training": bundle.manifest.training.figures["cpu_seconds"],
        "map_alone": directed.figures(mapped),
        "runs": list(kept),
    }
    for depth, sigma, share in (way for way in WAYS if way not in there):
        settings = SolverSettings(depth=depth, share=share)
        asked = ArraySettings(settings, cycle=True, soften=sigma, seed=0)
        made = translate_array(x, *parties, asked)
        figures = directed.figures(made.translated, back=made.back, latent=made.latent)
        again = np.clip(directed.bundles[1].manifest.normalisation.undo(units.apply(made.back)), -1, 1)
        figures["cycle_psnr_mapped"] = directed.drawn.mean(psnr(again, mapped))
        way = {"depth": depth, "soften_sigma": sigma, "share": share}
        found["runs"].append({**way, **figures})
        print(directed.name, seed, depth, sigma, share, _line(figures), flush=True)
    return found


def _line(figures: dict[str, Any]) -> str:
    names = ("psnr", "ssim", "partner", "cycle_psnr", "cycle_psnr_mapped")
    parts = [
        f"{name} {figures[name]['value']:.3f} [{figures[name]['low']:.3f}, {figures[name]['high']:.3f}]"
        for name in names
    ]
    return ", ".join([*parts, f"latent ratio {figures['latent_ratio']:.2f} std {figures['latent_std']:.3f}"])


def _tell(now: Any) -> None:
    if now.step % 50 == 0:
        print(now.step, round(now.loss, 4), flush=True)


if __name__ == "__main__":
    sys.exit(main())

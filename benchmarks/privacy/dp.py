"""What differential privacy costs: moons learned from a file of points, without and with it, and the table of its page.

    python -m benchmarks.privacy.dp            train (about an hour of one core), then write the table
    python -m benchmarks.privacy.dp --report   only the table

Every row learns from the same 20,000 points, 18,000 of them to train on, in 3,000 steps of 1,800 on average, with the
network of 64 hidden units and 2 blocks; the first is the ordinary training of that network. Distances are sliced W2 of
10,000 drawn points to as many fresh ones; seeds are 0, 1 and 2. One thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pages import between, markdown
from ddib_fed.datasets.synthetic import draw
from ddib_fed.diffusion.bridge import decode
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.schedule import schedule_from_config
from ddib_fed.files import write_file, write_json
from ddib_fed.metrics import points as metrics
from ddib_fed.models.bundle import Bundle
from ddib_fed.networks.registry import network_with
from ddib_fed.training.run import train
from ddib_fed.training.settings.config import PointTrainConfig

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "docs" / "benchmarks" / "privacy" / "dp.json"
PAGE = ROOT / "docs" / "differential-privacy.md"
DOMAIN, POINTS, DRAWN = "moons", 20_000, 10_000
STEPS, BATCH, DELTA = 3_000, 1_800, 1e-5
SEEDS = (0, 1, 2)
ROWS: dict[str, dict[str, Any]] = {
    "none": {"reference": 900},
    "none, plain targets": {"reference": 0},
    "8": {"dp_epsilon": 8.0},
    "3": {"dp_epsilon": 3.0},
    "1": {"dp_epsilon": 1.0},
}


def main() -> int:
    """Train what was asked for, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epsilon", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seed", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    for name in () if given.report else given.epsilon:
        for seed in given.seed:
            found.setdefault(name, {})[str(seed)] = measured(ROWS[name], seed)
            print(name, seed, found[name][str(seed)], flush=True)
            FOUND.parent.mkdir(parents=True, exist_ok=True)
            write_json(FOUND, found)
    text = between(PAGE.read_text(encoding="utf-8"), "moons", "benchmarks/privacy/dp.py", table(found))
    write_file(PAGE, text.encode())
    return 0


def measured(settings: dict[str, Any], seed: int) -> dict[str, float]:
    """Train once; how far what the model draws is from fresh points, and what it cost."""
    private = {"dp_delta": DELTA, **settings} if "dp_epsilon" in settings else settings
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "points.npy"
        np.save(data, draw(DOMAIN, POINTS, 7_000 + seed))
        config = PointTrainConfig(
            data=data, steps=STEPS, batch=BATCH, levels=BATCH, width=64, blocks=2, seed=seed, samples=1_000,
            checkpoint_every=STEPS, **{"reference": 0, **private},
        )  # fmt: skip
        started = time.process_time()
        bundle = train(config, Path(place) / "model")
    spent = bundle.manifest.differential_privacy
    return {
        "sliced_w2": metrics.sliced_w2(drawn(bundle), metrics.reference_points(DOMAIN, DRAWN)),
        "floor": metrics.domain_sliced_w2_floor(DOMAIN, DRAWN),
        "held_out_loss": bundle.manifest.training.figures["held_out_loss"],
        "epsilon": 0.0 if spent is None else spent.epsilon,
        "noise_multiplier": 0.0 if spent is None else spent.noise_multiplier,
        "cpu_seconds": time.process_time() - started,
    }


def drawn(bundle: Bundle) -> Any:
    """Points that the model draws, in the units of the data."""
    made = bundle.manifest
    noise = torch.randn(DRAWN, 2, generator=torch.Generator().manual_seed(11))
    network = network_with(made.network, bundle.state).eval()
    denoiser = Denoiser(network, made.parameterisation, made.time_input)
    return made.normalisation.undo(decode(noise, denoiser, schedule_from_config(made.schedule)).numpy())


def table(found: dict[str, Any]) -> str:
    """A row of each epsilon: means over the seeds, and the range of the distances."""
    rows = []
    for name in (name for name in ROWS if name in found):
        runs = list(found[name].values())
        distances = [run["sliced_w2"] for run in runs]
        noise = runs[0]["noise_multiplier"]
        rows.append(
            (
                name,
                f"{noise:.2f}" if noise else None,
                f"{statistics.mean(distances):.4f} ({min(distances):.4f} to {max(distances):.4f})",
                f"{statistics.mean(distances) / runs[0]['floor']:.1f}",
                f"{statistics.mean(run['held_out_loss'] for run in runs):.3f}",
                f"{statistics.mean(run['cpu_seconds'] for run in runs):.0f}",
            )
        )
    columns = (
        "epsilon",
        "noise multiplier",
        "sliced W2 to fresh points",
        "over its floor",
        "held-out loss",
        "CPU s",
    )
    return markdown(columns, tuple(rows))


if __name__ == "__main__":
    sys.exit(main())

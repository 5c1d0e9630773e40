"""What differential privacy costs: moons learned from a file of points, without and with it, and the table of its page.

    python -m benchmarks.privacy.dp --short    train in the short form (some minutes of one core), then write the table
    python -m benchmarks.privacy.dp            the long form (hours)
    python -m benchmarks.privacy.dp --report   only the table: of the long form where it was run

Every row learns from the same 20,000 points, 18,000 of them to train on, with batches of 1,800 on average and the
network of 64 hidden units and 2 blocks; the first is the ordinary training of that network. Distances are sliced W2 of
10,000 drawn points to as many fresh ones. One thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.pages import between, markdown
from ddib_fed.datasets.synthetic import draw
from ddib_fed.diffusion.bridge import decode
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.schedule import schedule_from_config
from ddib_fed.files import write_file, write_json
from ddib_fed.lab.config import PrivateTrainConfig
from ddib_fed.metrics import points as metrics
from ddib_fed.models.bundle import Bundle
from ddib_fed.networks.registry import network_with
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "docs" / "benchmarks" / "privacy" / "dp.json"
PAGE = ROOT / "docs" / "differential-privacy.md"
DOMAIN, POINTS, DRAWN = "moons", 20_000, 10_000
BATCH, DELTA = 1_800, 1e-5


ROWS: dict[str, dict[str, Any]] = {
    "none": {"reference": 900},
    "none, plain targets": {"reference": 0},
    "8": {"dp_epsilon": 8.0},
    "3": {"dp_epsilon": 3.0},
    "1": {"dp_epsilon": 1.0},
}


class Form(NamedTuple):
    """Steps of each training, draws of a private step, seeds, each of which is a training of its own, and rows."""

    steps: int
    draws: int
    seeds: tuple[int, ...]
    rows: tuple[str, ...]


FORMS = {
    "long": Form(3_000, 4, (0, 1, 2), tuple(ROWS)),
    "short": Form(400, 4, (0,), ("none", "none, plain targets", "8")),
}


def main() -> int:
    """Train what was asked for, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epsilon", nargs="+", choices=list(ROWS), help="rows; default: those of the form")
    parser.add_argument("--short", action="store_true", help="fewer steps, seeds and rows")
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    form = "short" if given.short else "long"
    for name in () if given.report else given.epsilon or FORMS[form].rows:
        for seed in FORMS[form].seeds:
            run = measured(ROWS[name], FORMS[form], seed)
            found.setdefault(form, {}).setdefault(name, {})[str(seed)] = run
            print(name, seed, run, flush=True)
            FOUND.parent.mkdir(parents=True, exist_ok=True)
            write_json(FOUND, found)
    form = "long" if set(found.get("long", ())) == set(ROWS) else "short"
    text = between(
        PAGE.read_text(encoding="utf-8"), "moons", "benchmarks/privacy/dp.py", section(form, found[form])
    )
    write_file(PAGE, text.encode())
    return 0


def measured(settings: dict[str, Any], form: Form, seed: int) -> dict[str, float]:
    """Train once; how far the model's samples are from fresh points, and what it cost."""
    stepped: list[float] = []
    private = (
        {"dp_delta": DELTA, "dp_draws": form.draws, **settings} if "dp_epsilon" in settings else settings
    )
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "points.npy"
        np.save(data, draw(DOMAIN, POINTS, 7_000 + seed))
        kind = PrivateTrainConfig if "dp_epsilon" in settings else TrainConfig
        config = kind(
            data=data, steps=form.steps, batch=BATCH, levels=BATCH, width=64, blocks=2, seed=seed, samples=1_000,
            checkpoint_every=form.steps, **{"reference": 0, **private},
        )  # fmt: skip
        started = time.process_time()
        bundle = train(
            config, Path(place) / "model", on_progress=lambda _: stepped.append(time.process_time())
        )
    spent = bundle.manifest.differential_privacy
    return {
        "sliced_w2": metrics.sliced_w2(drawn(bundle), metrics.reference_points(DOMAIN, DRAWN)),
        "floor": metrics.domain_sliced_w2_floor(DOMAIN, DRAWN),
        "held_out_loss": bundle.manifest.training.figures["held_out_loss"],
        "epsilon": 0.0 if spent is None else spent.epsilon,
        "noise_multiplier": 0.0 if spent is None else spent.noise_multiplier,
        "step_ms": 1e3 * statistics.median(after - before for before, after in pairwise(stepped)),
        "cpu_seconds": time.process_time() - started,
    }


def drawn(bundle: Bundle) -> Any:
    """Points that the model draws, in the units of the data."""
    made = bundle.manifest
    noise = torch.randn(DRAWN, 2, generator=torch.Generator().manual_seed(11))
    network = network_with(made.network, bundle.state).eval()
    denoiser = Denoiser(network, made.parameterisation, made.time_input)
    return made.normalisation.undo(decode(noise, denoiser, schedule_from_config(made.schedule)).numpy())


def section(form: str, found: dict[str, Any]) -> str:
    """How it was measured, and the table."""
    steps, draws, seeds, _ = FORMS[form]
    if len(seeds) > 1:
        said = f"Means over {len(seeds)} seeds ({form} form), with the range; {steps:,} steps, {draws} draws."
    else:
        said = f"One seed ({form} form, so differences of a few per cent mean nothing); {steps:,} steps, {draws} draws."
    return f"{said}\n\n{table(found)}"


def table(found: dict[str, Any]) -> str:
    """A row of each epsilon: means over the seeds, and the range of the distances."""
    rows = []
    plain = statistics.mean(run["step_ms"] for run in found["none, plain targets"].values())
    for name in (name for name in ROWS if name in found):
        runs = list(found[name].values())
        distances = [run["sliced_w2"] for run in runs]
        noise = runs[0]["noise_multiplier"]
        rows.append(
            (
                name,
                f"{noise:.2f}" if noise else None,
                f"{statistics.mean(distances):.4f}" + _range(distances),
                f"{statistics.mean(distances) / runs[0]['floor']:.1f}",
                f"{statistics.mean(run['held_out_loss'] for run in runs):.3f}",
                f"{(step := statistics.mean(run['step_ms'] for run in runs)):.1f}",
                f"{step / plain:.1f}",
                f"{statistics.mean(run['cpu_seconds'] for run in runs):.0f}",
            )
        )
    columns = (
        "epsilon",
        "noise multiplier",
        "sliced W2 to fresh points",
        "over its floor",
        "held-out loss",
        "CPU ms a step",
        "over plain targets",
        "CPU s in all",
    )
    return markdown(columns, tuple(rows))


def _range(values: list[float]) -> str:
    return f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""


if __name__ == "__main__":
    sys.exit(main())

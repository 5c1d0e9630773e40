"""The curve of a calibration's dial: what each share gives, what its latents show, and what the dial proposes.

    python -m benchmarks.calibration.dial      20 minutes of one core; draws docs/images/dial.png

Quality is of all test pictures at 24 evaluations a leg; `leak` is what the linear read-out by frequency
(`ddib privacy report`), fitted to 512 pairs of the source's training part, reads from latents of the test part. The
dial proposes from pictures that were held out of training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

import ddib_fed
from benchmarks.calibration.directed import NAMED, Directed, from_bytes, from_results
from benchmarks.calibration.variants import DEPTH, LEGS, RETRAINED, agreed
from benchmarks.command import Rows, Run, command
from benchmarks.pictures.judged import wrong_of
from ddib_fed import Calibration, Model, Request, Settings, metrics
from ddib_fed.lab.report import fit_inverter, latents_along
from ddib_fed.metrics import Pictures

PAIRS = ("relief-satellite", "satellite-relief")
SHARES = (1.0, 0.75, 0.5)
KNOWN, BLEND = 512, 0.3


def measure(run: Run) -> Rows:
    """Measure each pair, and draw the figure."""
    if run.smoke:
        yield from settings_of(Directed(*NAMED["satellite-relief"], count=2))
        return
    from benchmarks.calibration.dial_figure import plot  # with Matplotlib

    rows = []
    for pair in PAIRS:
        for row in settings_of(Directed(*NAMED[pair])):
            rows.append(row)
            yield row
    plot(rows)


def settings_of(directed: Directed) -> Iterator[dict[str, Any]]:
    """Yield a row of each setting, after the map alone and histogram matching."""
    calibration, model = agreed_model(directed)
    assert calibration.alone is not None
    wrong, sharp = wrong_of(directed), metrics.sharpness(directed.test[1]).mean()

    def row(setting: str, pictures: Pictures, **more: Any) -> dict[str, Any]:
        return {
            "pair": directed.name,
            "calibration": calibration.kind,
            "setting": setting,
            **directed.figures(pictures),
            "sharpness": directed.drawn.mean(metrics.sharpness(pictures) / sharp),
            "wrong": directed.drawn.mean(wrong(pictures).mean((1, 2))),
            **more,
        }

    yield row("the map alone", calibration.alone(directed.test[0]))
    yield row("histogram matching", directed.histogram_matched())
    settings = {f"share {share:g}": replace(LEGS, share=share) for share in SHARES}
    if directed.count:  # in a smoke
        settings = {"proposed": replace(LEGS, evaluations=4, blend=BLEND)}
    else:
        _, dial = ddib_fed.measure_dial(calibration, model, directed.models[1])
        settings["proposed"] = replace(LEGS, **dial.model_dump())
        settings |= {"depth": DEPTH, "depth and blend": replace(DEPTH, blend=BLEND)}
    for name, each in settings.items():
        results = directed.translate(Request(each, calibration=calibration, left=()), model)
        yield row(name, from_results(results), **asdict(each), leak=leak(directed, model, each))


def agreed_model(directed: Directed) -> tuple[Calibration, Model]:
    """Return the calibration of a pair, and the source's model that encodes under it."""
    if name := RETRAINED.get(directed.name):
        return Calibration.open(name), Model.open(name, threads=1)
    return agreed(directed)[0], directed.models[0]


def leak(directed: Directed, model: Model, settings: Settings) -> dict[str, float]:
    """Return what is read from latents of the test pictures, PSNR in dB."""
    rows = np.linspace(0, len(directed.train[0]) - 1, directed.count * 8 or KNOWN).round().astype(int)
    how: dict[str, Any] = {"share": settings.share, "evaluations": settings.evaluations}
    how |= {"depths": {settings.depth} - {1.0}, "sigma": model.manifest.soften_sigma}
    x = [model.units(pictures) for pictures in (from_bytes(directed.train[0][rows]), directed.test[0])]
    z = [latents_along(model, one, **how, seed=1 - n)[settings.depth] for n, one in enumerate(x)]
    read = model.out_of_units(fit_inverter(z[0], x[0], steps=0).inverse(z[1])).clip(-1.0, 1.0)
    return directed.drawn.mean(metrics.psnr(read, directed.test[0]))


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/dial"))

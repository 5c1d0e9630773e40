"""Which wrong translations the marks find, against the truth: by structure alone, and by classes under a calibration.

    python -m benchmarks.pictures.marks         writes docs/benchmarks/marks.json; one thread, five minutes

Wrong is a pixel on the other side of sea and land: in relief by the colours of water that cut the crops
(`data.shipped.WATER`), in satellite pictures by the nearer of the mean colours of sea and land; of heads by the nearer
of two mean values of the truth. A picture is bad when more than `BAD` of its pixels are wrong. `knowable` leaves out
pictures of which the calibration's map alone is bad: there the source does not show what the truth has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.directed import NAMED, OUT, Directed
from benchmarks.calibration.variants import agreed
from ddib_fed import metrics
from ddib_fed.calibration.record import Calibration
from ddib_fed.datasets import WATER
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.files import write_json
from ddib_fed.metrics import Pictures, doubtful, structure
from ddib_fed.models.bundle import open_bundle, shipped_folder
from tests.engine.stages import translate_array

FILE = OUT.parent / "marks.json"
BAD = {"satellite-relief": 0.25, "relief-satellite": 0.25, "brain-t1-brain-t2": 0.1}
RETRAINED = {"satellite-relief": "satellite-as-relief", "brain-t1-brain-t2": "brain-t1-as-t2"}
SETTINGS = SolverSettings(evaluations=24)
SHARES = (1.0, 0.75)
FEW = SolverSettings(evaluations=12, share=0.5)
"""Too few evaluations for a mixed encoder: PSNR hardly falls, and most maps are wrong."""
Wrong = Callable[[Pictures], np.ndarray]


def main() -> int:
    torch.set_num_threads(1)
    rows = [row for name in BAD for row in measured(Directed(*NAMED[name]))]
    write_json(FILE, rows)
    return 0


def water(pictures: Pictures) -> np.ndarray:
    red, green, blue = np.moveaxis((pictures + 1.0) * 127.5, 1, 0)
    return (blue - red >= WATER[0]) & (blue - green >= WATER[1])


def wrong_of(directed: Directed) -> Wrong:
    """Which pixels (N, H, W) of translations of all test pictures are wrong."""
    source, truth = directed.test
    units = directed.bundles[1].manifest.normalisation.plain
    if directed.target_name == "relief":
        sea = water(truth)
        return lambda found: water(found) != sea
    values = units.apply(truth)
    if directed.source_name == "relief":
        sea = water(source)
        pixels = np.moveaxis(values, 1, -1)
        centres = np.stack([pixels[sea].mean(0), pixels[~sea].mean(0)])
        return lambda found: (nearest(units.apply(found), centres) == 0) != sea
    centres = metrics.two_classes(values)
    expected = nearest(values, centres)
    return lambda found: nearest(units.apply(found), centres) != expected


def nearest(values: Pictures, centres: np.ndarray) -> np.ndarray:
    return np.argmin([np.square(values - each[:, None, None]).sum(1) for each in centres], axis=0)


def states(directed: Directed) -> Iterator[tuple[str, Calibration, Any, Calibration | None]]:
    """Name, calibration that marks, party that encodes, and calibration of the leg."""
    name, plain = directed.name, directed.parties[0]
    of_pair = agreed(directed)[0] if directed.test[0].shape[1] == 3 else None
    if name in RETRAINED:
        own = Calibration.open(shipped_folder() / RETRAINED[name] / "calibration.json")
        yield "without", of_pair or own, plain, None
        if of_pair is not None:
            yield "rotation", of_pair, plain, of_pair
        yield own.kind, own, open_party(open_bundle(RETRAINED[name])), None
    elif of_pair is not None:
        yield "without", of_pair, plain, None
        yield "rotation", of_pair, plain, of_pair


def measured(directed: Directed) -> Iterator[dict[str, Any]]:
    source, wrong, least = directed.test[0], wrong_of(directed), directed.thresholds
    assert least is not None
    for name, calibration, party, turned in states(directed):
        unknowable = wrong(calibration.alone(source)).mean((1, 2)) > BAD[directed.name]
        some = [replace(SETTINGS, share=share) for share in SHARES]
        for settings in (*some, FEW) if name == "rotation" else some:
            asked = ArraySettings(settings, calibration=None if turned is None else turned.map)
            found = translate_array(source, party, directed.parties[1], asked).translated
            pixels = wrong(found)
            bad = pixels.mean((1, 2)) > BAD[directed.name]
            new = structure(source, found, calibration.alone, least)
            old = structure(source, found)
            assert new.differs is not None
            score = new.differs.mean((1, 2))
            row = {
                "pair": directed.name,
                "state": name,
                "share": settings.share,
                "evaluations": settings.evaluations,
                "pictures": len(source),
                "wrong": float(pixels.mean()),
                "bad": int(bad.sum()),
                "bad_of_the_map": int(unknowable.sum()),
                "auc": area(score, bad),
                "auc_knowable": area(score[~unknowable], bad[~unknowable]),
                "by_classes": hits(doubtful(new, least), bad),
                "by_structure": hits(doubtful(old, least), bad),
                "auc_by_structure": area(-old.edge_correlation, bad),
            }
            print(row, flush=True)
            yield row


def hits(marked: np.ndarray, bad: np.ndarray) -> dict[str, Any]:
    both = int((marked & bad).sum())
    return {
        "marked": int(marked.sum()),
        "precision": both / int(marked.sum()) if marked.any() else None,
        "recall": both / int(bad.sum()) if bad.any() else None,
    }


def area(score: np.ndarray, bad: np.ndarray) -> float | None:
    """Area under the curve of true against false positives; None with fewer than two bad pictures."""
    if bad.sum() < 2 or bad.all():
        return None
    pairs = score[bad][:, None] - score[~bad][None]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


if __name__ == "__main__":
    sys.exit(main())

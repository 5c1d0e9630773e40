"""What a training run leaves for people: progress.csv, loss.png and samples.png in its run folder.

The rule: nothing here has a say in the weights.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddib_fed.diffusion.bridge import Side, decode
from ddib_fed.files import write_file
from ddib_fed.metrics import points as metrics
from ddib_fed.reports import plots
from ddib_fed.training.config import PointTrainConfig
from ddib_fed.training.sources import Source

FIELDS = ("step", "loss", "held_out", "learning_rate", "seconds", "cpu_seconds")
_SAMPLE_SEED = 4_711


@dataclass(frozen=True, slots=True)
class Row:
    """One line of progress.csv.

    Attributes:
        step: Steps done.
        loss: Mean over the steps since the last line.
        held_out: Of the averaged weights on points that are never trained on; None where it was not measured.
        learning_rate: Of the last step.
        seconds: Wall time since the process began this run.
        cpu_seconds: CPU time of the whole run, across resumes.
    """

    step: int
    loss: float
    held_out: float | None
    learning_rate: float
    seconds: float
    cpu_seconds: float


class ProgressFile:
    """progress.csv: a line is appended as it comes; on resuming, lines after the checkpoint are dropped.

    Args:
        path: The file.
        step: Lines after this step are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [row for row in read_progress(path) if row.step <= step] if path.exists() else []
        lines = [_line(FIELDS), *(_line(_cells(row)) for row in kept)]
        write_file(path, "".join(lines).encode(), private=True)

    def add(self, row: Row) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(_line(_cells(row)))


def read_progress(path: Path) -> list[Row]:
    """The lines of a progress.csv; a torn last line is left out."""
    rows = []
    with path.open(encoding="utf-8", newline="") as stream:
        for entry in csv.DictReader(stream):
            try:
                rows.append(_row(entry))
            except (TypeError, ValueError):
                break
    return rows


def draw_loss(rows: list[Row], path: Path) -> None:
    """loss.png from the lines of progress.csv; nothing for a run of no lines."""
    if not rows:
        return
    measured = [row for row in rows if row.held_out is not None]
    held_out = [(row.step, float(row.held_out or 0.0)) for row in measured]
    plots.loss_curve([(row.step, row.loss) for row in rows], path, held_out=held_out)


def sample(side: Side, dim: int, count: int, seed: int = _SAMPLE_SEED) -> NDArray[np.float32]:
    """Points (count, dim) decoded from noise, ordered by the angle of their latent, so that colours show it."""
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    if dim > 1:
        noise = noise[torch.argsort(torch.atan2(noise[:, 1], noise[:, 0]))]
    drawn: NDArray[np.float32] = decode(noise, side.denoiser, side.schedule).numpy()
    return drawn


def draw_samples(config: PointTrainConfig, source: Source, drawn: NDArray[np.float32], path: Path) -> None:
    """samples.png: what the model draws beside what it was trained on."""
    real = reference(config, source, len(drawn))
    clouds = [("data", real), ("model", drawn)]
    above = [plots.Panel(title, points, "heatmap") for title, points in clouds]
    beneath = [plots.Panel("by angle of the latent", drawn)]
    plots.draw_rows([[*above, *beneath]], path)


def figures(config: PointTrainConfig, source: Source, drawn: NDArray[np.float32]) -> dict[str, float]:
    """Sliced-W2 of what the model draws, with the floor beside it."""
    if config.domain is not None:
        floor = metrics.domain_sliced_w2_floor(config.domain, len(drawn))
        distance = metrics.sliced_w2(drawn, metrics.reference_points(config.domain, len(drawn)))
    else:
        floor = metrics.sliced_w2_floor(source.held_out, min(len(drawn), len(source.held_out)))
        distance = metrics.sliced_w2(drawn, source.held_out)
    return {"sliced_w2": round(distance, 5), "sliced_w2_floor": round(floor, 5)}


def reference(config: PointTrainConfig, source: Source, count: int) -> NDArray[np.float32]:
    """Data to hold the model's points against: fresh ones of a domain, or those held out."""
    if config.domain is not None:
        return metrics.reference_points(config.domain, count)
    return source.held_out


def _line(cells: tuple[object, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _cells(row: Row) -> tuple[object, ...]:
    held_out = "" if row.held_out is None else f"{row.held_out:.6g}"
    times = (f"{row.seconds:.3f}", f"{row.cpu_seconds:.3f}")
    return (row.step, f"{row.loss:.6g}", held_out, f"{row.learning_rate:.6g}", *times)


def _row(entry: dict[str, str]) -> Row:
    return Row(
        step=int(entry["step"]),
        loss=float(entry["loss"]),
        held_out=float(entry["held_out"]) if entry["held_out"] else None,
        learning_rate=float(entry["learning_rate"]),
        seconds=float(entry["seconds"]),
        cpu_seconds=float(entry["cpu_seconds"]),
    )

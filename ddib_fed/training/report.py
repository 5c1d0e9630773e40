"""The records of a run in its folder: progress.csv, loss.png and samples.png; no weight depends on them."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from ddib_fed.evaluation import plots
from ddib_fed.files import write_file
from ddib_fed.training.config import learning_rate
from ddib_fed.training.trainer import Progress, Trainer

LOG_EVERY = 10
RISEN = 1.05
"""A held-out loss so many times its least is said to rise."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of progress.csv."""

    step: int
    loss: float
    held_out: float | None
    learning_rate: float
    seconds: float
    cpu_seconds: float

    def __str__(self) -> str:
        held_out = "" if self.held_out is None else f"{self.held_out:.6g}"
        return (
            f"{self.step},{self.loss:.6g},{held_out},{self.learning_rate:.6g},{self.seconds:.3f},"
            f"{self.cpu_seconds:.3f}\n"
        )


def read_progress(path: Path) -> list[Row]:
    """The lines of a progress.csv; a torn last line is left out."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    with path.open(encoding="utf-8", newline="") as stream:
        for entry in csv.DictReader(stream):
            try:
                step = int(entry.pop("step"))
                held_out = entry.pop("held_out")
                numbers = {name: float(text) for name, text in entry.items()}
                rows.append(Row(step, held_out=float(held_out) if held_out else None, **numbers))
            except (TypeError, ValueError):
                break
    return rows


def draw_loss(rows: list[Row], path: Path) -> None:
    """loss.png from the lines of progress.csv; nothing for a run of no lines."""
    if rows:
        held_out = [(row.step, row.held_out) for row in rows if row.held_out is not None]
        plots.loss_curve([(row.step, row.loss) for row in rows], path, held_out=held_out)


class Log:
    """progress.csv, the curve and the samples of a run as it goes, and what is to be said of them."""

    def __init__(self, folder: Path, trainer: Trainer, cpu_seconds: Callable[[], float]) -> None:
        self._folder, self._cpu_seconds = folder, cpu_seconds
        self._file = folder / "progress.csv"
        # Lines after the checkpoint that is resumed from are dropped.
        kept = [row for row in read_progress(self._file) if row.step <= trainer.step]
        header = ",".join(field.name for field in fields(Row)) + "\n"
        write_file(self._file, (header + "".join(map(str, kept))).encode(), private=True)
        self._first = trainer.step
        self._losses: list[float] = []
        self._smooth, self._read = 0.0, 0
        before = [row.held_out for row in kept if row.held_out is not None]
        self._held_out = before[-1] if before else None
        self._least = min(before, default=float("inf"))
        self._said: set[str] = set()
        self._begun = time.monotonic()

    def add(self, trainer: Trainer, losses: list[float], *, validate: bool) -> None:
        """Take in the losses that can be read; write a line when one is due, with the held-out loss when `validate`."""
        self._losses += losses
        for loss in losses:
            self._read += 1
            self._smooth += (loss - self._smooth) / min(50, self._read)
        if validate:
            self._held_out = trainer.held_out_loss()
            self._least = min(self._least, self._held_out)
            if self._held_out > RISEN * self._least:
                self._say(
                    trainer, "rising", "overfitting: the held-out loss rises; stop earlier, or add data"
                )
        if validate or trainer.step % LOG_EVERY == 0:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(str(self._row(trainer, self._held_out if validate else None)))
            self._losses.clear()

    def draw(self, trainer: Trainer, *, last: bool = False) -> None:
        """Renew loss.png and samples.png, and compare the samples with training data."""
        if last or trainer.config.kind != "points":
            draw_loss(read_progress(self._file), self._folder / "loss.png")
        self._say(trainer, "near", trainer.task.show(trainer, self._folder, last=last))

    def progress(self, trainer: Trainer) -> Progress:
        rate = (trainer.step - self._first) / max(1e-9, time.monotonic() - self._begun)
        return Progress(trainer.step, trainer.steps, self._smooth, self._held_out, rate)

    def _say(self, trainer: Trainer, kind: str, text: str) -> None:
        if text and kind not in self._said:
            self._said.add(kind)
            trainer.notes.append(text)

    def _row(self, trainer: Trainer, held_out: float | None) -> Row:
        return Row(
            step=trainer.step,
            loss=sum(self._losses) / len(self._losses),
            held_out=held_out,
            learning_rate=learning_rate(trainer.config, trainer.step - 1),
            seconds=time.monotonic() - self._begun,
            cpu_seconds=self._cpu_seconds(),
        )

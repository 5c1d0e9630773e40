"""What a run on pictures writes down as it goes: progress.csv, loss.png, samples.png, and what is to be said.

The rule: nothing here has a say in the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ddib_fed.training import record
from ddib_fed.training.config import learning_rate
from ddib_fed.training.pictures import sheet
from ddib_fed.training.pictures.loop import PictureTrainer, Progress

LOG_EVERY = 10
RISEN = 1.05
"""A held-out loss so many times its least is said to rise."""


class Log:
    """The records of a run.

    Args:
        folder: Where they are written.
        trainer: At the step at which this process begins.
        cpu_seconds: Gives the CPU seconds of the whole run.
    """

    def __init__(self, folder: Path, trainer: PictureTrainer, cpu_seconds: Callable[[], float]) -> None:
        self._folder, self._cpu_seconds = folder, cpu_seconds
        self._file = record.ProgressFile(folder / "progress.csv", trainer.step)
        self._first = trainer.step
        self._losses: list[float] = []
        self._smooth = 0.0
        before = [row.held_out for row in record.read_progress(self._file.path) if row.held_out is not None]
        self._held_out = before[-1] if before else None
        self._least = min(before, default=float("inf"))
        self._said: set[str] = set()
        self._begun = time.monotonic()

    def add(self, trainer: PictureTrainer, loss: float, *, validate: bool) -> None:
        """Take in a step's loss; write a line when one is due, with the held-out loss when `validate`."""
        self._losses.append(loss)
        self._smooth += (loss - self._smooth) / min(50, trainer.step - self._first)
        if validate:
            self._held_out = trainer.held_out_loss()
            self._least = min(self._least, self._held_out)
            if self._held_out > RISEN * self._least:
                self._say(
                    trainer, "rising", "overfitting: the held-out loss rises; stop earlier, or add pictures"
                )
        if validate or trainer.step % LOG_EVERY == 0:
            self._file.add(self._row(trainer, self._held_out if validate else None))
            self._losses.clear()

    def draw(self, trainer: PictureTrainer) -> None:
        """Renew loss.png and samples.png, and compare the samples with training pictures."""
        record.draw_loss(record.read_progress(self._file.path), self._folder / "loss.png")
        if trainer.start.classifies:
            return
        drawn = sheet.draw(trainer)
        sheet.draw_sheet(drawn, self._folder / "samples.png")
        self._say(trainer, "near", sheet.nearness(trainer, drawn).warning)

    def progress(self, trainer: PictureTrainer) -> Progress:
        """What `on_progress` is told."""
        rate = (trainer.step - self._first) / max(1e-9, time.monotonic() - self._begun)
        return Progress(trainer.step, trainer.steps, self._smooth, self._held_out, rate)

    def _say(self, trainer: PictureTrainer, kind: str, text: str) -> None:
        """Have something said, if it is something and nothing of its kind was said before."""
        if text and kind not in self._said:
            self._said.add(kind)
            trainer.notes.append(text)

    def _row(self, trainer: PictureTrainer, held_out: float | None) -> record.Row:
        return record.Row(
            step=trainer.step,
            loss=sum(self._losses) / len(self._losses),
            held_out=held_out,
            learning_rate=learning_rate(trainer.config, trainer.step - 1),
            seconds=time.monotonic() - self._begun,
            cpu_seconds=self._cpu_seconds(),
        )

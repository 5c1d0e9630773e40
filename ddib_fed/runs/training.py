"""A training run at a terminal: progress bars, and signals that stop it after the step that it is in."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from ddib_fed.bars import bar
from ddib_fed.models.bundle import Bundle
from ddib_fed.terminal import say
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.loop.trainer import Progress
from ddib_fed.training.run import train


def train_at_terminal(config: TrainConfig, out: Path, *, resume: bool, force: bool) -> Bundle | None:
    """Train with a progress bar on stderr; Ctrl-C and SIGTERM stop it so that it can be resumed."""
    with bar("training") as show, bar("checking") as look, _stopping() as stop:

        def on_progress(progress: Progress) -> None:
            held_out = "" if progress.held_out is None else f"  held out {progress.held_out:.4f}"
            show(
                progress.step,
                progress.steps,
                f"loss {progress.loss:.4f}{held_out}  {progress.rate:.2g} steps/s",
            )
            stop(progress.step)

        done = train(
            config,
            out,
            on_progress,
            resume=resume,
            force=force,
            say=partial(say, err=True),
            on_scan=lambda count, total: look(count, total, "pictures"),
        )
    return done if os.environ.get("RANK", "0") == "0" else None


@contextmanager
def _stopping() -> Iterator[Callable[[int], None]]:
    """Let Ctrl-C and SIGTERM end a run after the step that it is in, so that nothing is lost."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping after this step; once more stops at once", err=True)

    def stop(step: int) -> None:
        if asked:
            say(f"stopped after step {step}; resume it with the same command", err=True)
            raise KeyboardInterrupt

    alone = "RANK" not in os.environ and threading.current_thread() is threading.main_thread()
    before = (
        {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if alone else {}
    )
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Progress bars on stderr; ten lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ddib_fed.terminal import column, console, say

if TYPE_CHECKING:
    from rich.progress import Progress

Show = Callable[[int, int, str], None]
_LINES = 10


@contextmanager
def bar(what: str) -> Iterator[Show]:
    """A function that shows progress, called with (done, total, remark)."""
    if sys.stderr.isatty():
        with _drawn(what) as show:
            yield show
    else:
        yield _Spoken(what)


@contextmanager
def _drawn(what: str) -> Iterator[Show]:
    with drawing("{task.description}", "{task.fields[remark]}", left=True) as progress:
        task = progress.add_task(what, total=None, remark="")
        yield lambda done, total, remark: progress.update(task, completed=done, total=total, remark=remark)


def drawing(
    name: str, remark: str = "", *, left: bool = False, transient: bool = False, disable: bool = False
) -> Progress:
    """Bars on stderr, drawn by rich, to be entered; texts are escaped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = [
        column(name),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        *([column(remark)] if remark else []),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if left else []),
    ]
    return Progress(*columns, console=console(stderr=True), transient=transient, disable=disable)


class _Spoken:
    """Ten lines in all, with the time that the rest takes at the same pace."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = 0
        self._begun: tuple[int, float] | None = None

    def __call__(self, done: int, total: int, remark: str) -> None:
        if self._begun is None:  # what was done before counts for nothing: a run may go on
            self._begun = done, time.monotonic()
        first, since = self._begun
        tenth = done * _LINES // total
        if tenth > self._said:
            self._said = tenth
            rest = remark
            if first < done < total:
                left = (time.monotonic() - since) / (done - first) * (total - done)
                rest = f"{remark}  {timedelta(seconds=round(left))} left"
            say(f"{self._what} {done}/{total}  {rest.strip()}".rstrip(), err=True)

"""Progress bars on stderr; ten lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from ddib_fed.terminal import say

Show = Callable[[int, int, str], None]
_LINES = 10


@contextmanager
def bar(what: str) -> Iterator[Show]:
    """Give a function that is told (done, in all, remark) and shows it.

    Args:
        what: The word in front.
    """
    if sys.stderr.isatty():
        with _drawn(what) as show:
            yield show
    else:
        yield _Spoken(what)


@contextmanager
def _drawn(what: str) -> Iterator[Show]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from ddib_fed.terminal import column, console

    columns = (
        column("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        column("{task.fields[remark]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True)) as progress:
        task = progress.add_task(what, total=None, remark="")
        yield lambda done, total, remark: progress.update(task, completed=done, total=total, remark=remark)


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


def lines(pairs: Mapping[str, str]) -> None:
    """Names and values below one another on stdout."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        say(f"{name:<{width}}  {value}")

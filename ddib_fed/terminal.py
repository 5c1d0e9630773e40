"""Prints to the terminal and escapes text from files, peers and nodes; the only way to print.

Everything is printed through `say` or `console`, which escape control characters, so that a text makes one
line and cannot control the terminal.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Literal

from ddib_fed.errors import ConfigError, DdibError, DiskFull, InputError, InternalError
from ddib_fed.files import is_disk_full

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TextColumn
    from rich.text import Text


# Without a terminal lines are not wrapped: scripts that read a pipe expect one row on each line.
PIPE_WIDTH = 240

Style = Literal["plain", "bold", "dim"]
_STYLES: dict[Style, tuple[str, str]] = {
    "plain": ("", ""),
    "bold": ("\x1b[1m", "\x1b[0m"),
    "dim": ("\x1b[2m", "\x1b[0m"),
}

_aside: ContextVar[bool] = ContextVar("sentences go to stderr", default=False)


def escape(text: str) -> str:
    r"""The text with each character that does not print as itself as a backslash escape, e.g. ``\x1b`` or
    ``\u202e``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(*lines: str, err: bool = False, style: Style = "plain") -> None:
    """Write a line for each text, escaped, to stdout or stderr; without a text an empty line."""
    stream = sys.stderr if err or _aside.get() else sys.stdout
    before, after = _STYLES[style] if stream.isatty() else _STYLES["plain"]
    encoding = stream.encoding or "utf-8"
    for line in lines or ("",):
        # A terminal of another encoding shows an escape where it has no letter.
        fits = escape(line).encode(encoding, "backslashreplace").decode(encoding)
        stream.write(f"{before}{fits}{after}\n")
    stream.flush()


@contextmanager
def sentences_aside() -> Iterator[None]:
    """Inside, what is said goes to stderr, so that stdout holds a document for scripts alone (`say_document`)."""
    before = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(before)


def is_aside() -> bool:
    return _aside.get()


def say_document(text: str) -> None:
    """Write a document for scripts to stdout, escaped line by line, wherever sentences go."""
    before = _aside.set(False)
    try:
        say(*text.split("\n"))
    finally:
        _aside.reset(before)


def say_labelled(label: str, text: str) -> None:
    first, *rest = text.split("\n")
    say(label + first, *(" " * 8 + line.strip() for line in rest), err=True)


def relay(write: Callable[[IO[str]], object]) -> None:
    """Write to stderr what another library writes to a file, e.g. click's complaint about what was typed."""
    written = io.StringIO()
    write(written)
    say(*written.getvalue().expandtabs(4).rstrip("\n").split("\n"), err=True)


@contextmanager
def importing() -> Iterator[None]:
    """Inside, Ctrl-C ends the program without a word: Python would show the traceback of whatever is imported."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def console(*, stderr: bool = False) -> Console:
    """A rich console that shows text as it is: without markup, links or emoji codes, and escaped."""
    stream = sys.stderr if stderr or _aside.get() else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    made: Console = _console_class()(file=stream, highlight=False, markup=False, emoji=False, width=width)
    return made


def column(text_format: str) -> TextColumn:
    made: TextColumn = _column_class()(text_format, markup=False)
    return made


@cache
def _console_class() -> Any:
    """The class, made when it is needed: rich takes a while to import."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(escape(text), **options)

    return Plain


@cache
def _column_class() -> Any:
    from rich.progress import TextColumn
    from rich.text import Text

    class Plain(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(escape(self.text_format.format(task=task)), justify=self.justify)

    return Plain


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
def bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """As `bar`, for one part after the other: called with (what, done, total, remark)."""
    with ExitStack() as stack:
        now: dict[str, Show] = {}

        def on_progress(what: str, done: int, total: int, remark: str) -> None:
            if what not in now:
                stack.close()
                now.clear()
                now[what] = stack.enter_context(bar(what))
            now[what](done, total, remark)

        yield on_progress


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


NODE_EXTRA = {
    "grpc_health": "grpcio-health-checking",
    "matplotlib": "matplotlib",
    "prometheus_client": "prometheus-client",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "spake2": "spake2",
    "torch": "torch",
}
"""What the extra `node` installs, by the name under which it is imported."""


def debugging() -> bool:
    return os.environ.get("DDIB_DEBUG", "") not in {"", "0"}


def explained(error: Exception) -> DdibError:
    """The error itself when it is one of ours, else one that says the same; shows the traceback where one is wanted."""
    if debugging():
        say(*"".join(traceback.format_exception(error)).rstrip("\n").split("\n"), err=True)
    if isinstance(error, DdibError):
        return error
    if isinstance(error, ImportError) and (package := NODE_EXTRA.get((error.name or "").partition(".")[0])):
        from ddib_fed.errors import missing

        return missing("node", package, f"this command needs {package}, which is not installed")
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        kind = DiskFull if is_disk_full(error) else InputError
        return kind(f"{where}{error.strerror}", hint=_look(error))
    hint = "" if debugging() else "the same command with DDIB_DEBUG=1 in front shows where it happened"
    return InternalError(f"unexpected {type(error).__name__}: {error}", hint=hint)


def _look(error: OSError) -> str:
    """What shows why the operating system refused."""
    if error.filename is None:
        return "the same command with DDIB_DEBUG=1 in front shows where it happened"
    place = shlex.quote(str(error.filename))
    if is_disk_full(error):
        return f"df -h {place}"
    return f"namei -l {place} shows each folder of the path and who may write there"


def as_config_error(error: OSError, what: str) -> ConfigError:
    return ConfigError(f"{error.filename or what}: {error.strerror or error}", hint=_look(error))

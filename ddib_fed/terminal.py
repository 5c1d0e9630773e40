"""Prints to the terminal and escapes text from files, peers and nodes; the only way to print.

Everything is printed through `say` or `console`, which escape control characters, so that a text makes one
line and cannot control the terminal.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task, TextColumn
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

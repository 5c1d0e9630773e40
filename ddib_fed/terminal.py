"""Prints to the terminal and escapes text from files, peers and nodes; what a process is to whoever started it.

Everything is printed through `say` or `console`, which escape control characters, so that a text makes one
line and cannot control the terminal. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Any, Final

from ddib_fed import errors
from ddib_fed.files import is_disk_full

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TextColumn
    from rich.text import Text

# Without a terminal lines are not wrapped: scripts that read a pipe expect one row on each line.
PIPE_WIDTH = 240
_aside: ContextVar[bool] = ContextVar("sentences go to stderr", default=False)


def escape(text: str) -> str:
    r"""Return the text with a backslash escape for each character that does not print, such as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(*lines: str, err: bool = False, dim: bool = False) -> None:
    """Write a line for each text, escaped, to stdout or stderr; without a text an empty line."""
    _write(sys.stderr if err or is_aside() else sys.stdout, lines or ("",), dim=dim)


def _write(stream: IO[str], lines: Iterable[str], *, dim: bool = False) -> None:
    before, after = ("\x1b[2m", "\x1b[0m") if dim and stream.isatty() else ("", "")
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        # A terminal of another encoding shows an escape where it has no letter.
        fits = escape(line).encode(encoding, "backslashreplace").decode(encoding)
        stream.write(f"{before}{fits}{after}\n")
    stream.flush()


@contextmanager
def sentences_aside() -> Iterator[None]:
    """Send sentences to stderr inside the block, so that stdout holds only a document (`print_json`)."""
    before = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(before)


def is_aside() -> bool:
    return _aside.get()


def say_document(text: str) -> None:
    """Write a document for scripts to stdout, escaped line by line, wherever sentences go."""
    _write(sys.stdout, text.split("\n"))


def say_labelled(label: str, text: str) -> None:
    first, *rest = text.split("\n")
    say(label + first, *(" " * 8 + line.strip() for line in rest), err=True)


def relay(write: Callable[[IO[str]], object]) -> None:
    """Write to stderr what another library writes to a file, e.g. click's complaint about what was typed."""
    written = io.StringIO()
    write(written)
    say(*written.getvalue().expandtabs(4).rstrip("\n").split("\n"), err=True)


# The result of a command: one JSON document for scripts, or lines and tables.


def emit(value: object, text: Callable[[], object] | None = None) -> None:
    """Print the result of a command: one JSON document with `--format json`, else its own lines."""
    if is_aside():
        print_json(value)
    elif text is not None:
        text()


def outcome(**values: object) -> None:
    emit(values)


def print_json(value: object) -> None:
    say_document(json.dumps(plain(value), indent=2))


def plain(value: object) -> Any:
    """Convert dataclasses, pydantic models, enums, bytes (to hex), paths, times and tuples to JSON values."""
    from pydantic_core import to_jsonable_python  # which commands without a document need not load

    return to_jsonable_python(value, bytes_mode="hex", fallback=dict)


def moment(unix_s: float) -> str | None:
    """Format a time for scripts as 2026-11-26T17:40:00Z; None for 0, which means not yet or unknown."""
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%SZ}" if unix_s else None
    except (OverflowError, OSError, ValueError):
        return None


def when(time: datetime | float | None) -> str:
    """Format a time, or seconds of Unix, for people, in this machine's zone; `-` if there is none in the calendar."""
    try:
        moment = time if isinstance(time, datetime) else datetime.fromtimestamp(time or 0, UTC)
        return f"{moment.astimezone():%Y-%m-%d %H:%M}" if time else "-"
    except (OverflowError, OSError, ValueError):  # the last hours of the year 9999, east of Greenwich
        return "-"


def number(value: Any, form: str = ".3g") -> str:
    return "" if value is None else format(value, form)


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def lines(pairs: Mapping[str, str]) -> None:
    width = max(map(len, pairs))
    for name, value in pairs.items():
        say(f"{name:<{width}}  {value}")


def listed(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return a line for each JSON value and for each object of a list, without empty ones."""
    rows: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows |= {f"{prefix}{key} {place}": _text(each) for place, each in enumerate(value, 1)}
        elif value not in _EMPTY and key not in _FOR_PROGRAMS:
            rows[f"{prefix}{key}"] = _text(value)
    return rows


_EMPTY: tuple[object, ...] = (None, "", [], {})
_FOR_PROGRAMS = {"format_version", "lams"}


def _text(value: object) -> str:
    if isinstance(value, dict):
        rest = {key: each for key, each in value.items() if each not in _EMPTY and key not in _FOR_PROGRAMS}
        middle, said = next((key for key in ("value", "mean") if key in rest), ""), []
        if middle and {"low", "high"} <= rest.keys():  # a figure with its interval
            said = [f"{rest.pop(middle):.3g} ({rest.pop('low'):.3g} to {rest.pop('high'):.3g})"]
        return ", ".join([*said, *(f"{key} {_text(each)}" for key, each in rest.items())])
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that escapes text and knows no markup, links or emoji codes."""
    from rich.console import Console  # which takes a while to import

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(escape(text), **options)

    stream = sys.stderr if stderr or is_aside() else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Plain(file=stream, highlight=False, markup=False, emoji=False, width=width)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False
) -> None:
    """Print a table; ">" before a column's name aligns it to the right, and "!" forbids wrapping."""
    from rich.box import SIMPLE_HEAD
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.title_justify = "left"
    for column in columns:
        table.add_column(
            column.lstrip(">!"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=column.startswith("!"),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    target = console(stderr=err)
    if any(column.startswith("!") for column in columns):
        anywhere = target.options.update(width=1 << 16)
        target.width = max(target.width, Measurement.get(target, anywhere, table).minimum)
    target.print(table, crop=False)


# Progress: bars, or ten lines without a terminal.

Show = Callable[..., None]  # called with (done, total), and a remark where there is one
_LINES = 10


@contextmanager
def bar(what: str) -> Iterator[Show]:
    """Give a function that shows progress."""
    if not sys.stderr.isatty():
        yield _ten_lines(what)
        return
    with drawing("{task.description}", "{task.fields[remark]}", left=True) as progress:
        task = progress.add_task(what, total=None, remark="")
        yield lambda done, total, remark="": progress.update(task, completed=done, total=total, remark=remark)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """Give a function of (what, done, total, remark) that shows one part after the other, as `bar`."""
    with ExitStack() as stack:
        now: dict[str, Show] = {}

        def on_progress(what: str, done: int, total: int, remark: str) -> None:
            if what not in now:
                stack.close()
                now.clear()
                now[what] = stack.enter_context(bar(what))
            now[what](done, total, remark)

        yield on_progress


def drawing(
    name: str, remark: str = "", *, left: bool = False, transient: bool = False, disable: bool = False
) -> Progress:
    """Return rich's bars on stderr, a context manager; texts are escaped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = [
        _text_column(name),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        *([_text_column(remark)] if remark else []),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if left else []),
    ]
    return Progress(*columns, console=console(stderr=True), transient=transient, disable=disable)


def _text_column(text_format: str) -> TextColumn:
    from rich.progress import TextColumn
    from rich.text import Text

    class Plain(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(escape(self.text_format.format(task=task)), justify=self.justify)

    return Plain(text_format, markup=False)


def _ten_lines(what: str) -> Show:
    """Return a function that prints ten lines in all, with the time left at the same pace."""
    said, begun = 0, None

    def show(done: int, total: int, remark: str = "") -> None:
        nonlocal said, begun
        # What was done before counts for nothing: a run may go on.
        first, since = begun = begun or (done, time.monotonic())
        if done * _LINES // total <= said:
            return
        said = done * _LINES // total
        rest = remark
        if first < done < total:
            left = (time.monotonic() - since) / (done - first) * (total - done)
            rest = f"{remark}  {timedelta(seconds=round(left))} left"
        say(f"{what} {done}/{total}  {rest.strip()}".rstrip(), err=True)

    return show


# Errors, as the person at this machine sees them.

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
_SHOW_WHERE: Final = "the same command with DDIB_DEBUG=1 in front shows where it happened: report that"


def explained(error: Exception, file: object = None) -> errors.DdibError:
    """Return our own errors as they are and others as ours; print the traceback under DDIB_DEBUG.

    With `file` no words of the exception are repeated: they may hold values of the file.
    """
    debugging = os.environ.get("DDIB_DEBUG", "") not in {"", "0"}
    if debugging:
        say(*"".join(traceback.format_exception(error)).rstrip("\n").split("\n"), err=True)
    if isinstance(error, errors.DdibError):
        return error
    if isinstance(error, ImportError) and (package := NODE_EXTRA.get((error.name or "").partition(".")[0])):
        return errors.missing("node", package, f"this command needs {package}, which is not installed")
    if isinstance(error, OSError) and error.strerror:
        place = error.filename if file is None else file
        where = f"{place}: " if place is not None else ""
        kind = errors.DiskFull if is_disk_full(error) else errors.InputError
        return kind(f"{where}{error.strerror}", hint=_look(error))
    hint = "" if debugging else _SHOW_WHERE
    what = f"unexpected {type(error).__name__}"
    return errors.InternalError(f"{what}: {error}" if file is None else f"{file}: {what}", hint=hint)


def _look(error: OSError) -> str:
    """Return a command that shows why the operating system refused."""
    if error.filename is None:
        return ""
    place = shlex.quote(str(error.filename))
    if is_disk_full(error):
        return f"df -h {place}"
    return f"namei -l {place} shows each folder of the path and who may write there"


def as_config_error(error: OSError, what: str) -> errors.ConfigError:
    return errors.ConfigError(f"{error.filename or what}: {error.strerror or error}", hint=_look(error))


def show_error(error: errors.DdibError) -> None:
    say_labelled("error: ", f"{error.detail}  [{error.reason}]")
    if error.hop:
        say_labelled("  at:   ", error.hop)
    # Whose facts are in the sentence and the hint.
    said = isinstance(error, errors.PictureMisfit | errors.KindMismatch | errors.PeerFault)
    if error.facts and not said and not {"found", "last", "picture"} & error.facts.keys():
        facts = ", ".join(f"{key} {value}" for key, value in error.facts.items())
        say_labelled(f"  {error.says} says: " if error.says else "  more: ", facts)
    if error.incident:
        say_labelled("  incident: ", error.incident)
    if error.differences:  # of two contracts
        rows = [[each.field, each.source, each.target, each.remedy] for each in error.differences]
        print_table("", ["field", "source", "target", "what to do"], rows, err=True)
    step = errors.next_step(error)
    if error.retry_after_s:
        later = f"after {error.retry_after_s:.0f} s"
        step = f"{step} ({later})" if step else f"again {later}"
    if step:
        say_labelled("  try:  ", step)


# Processes. What does not share its work among processes refuses several of them before it writes anything: otherwise
# each would do all of it, and all would write the same files.

TORCHRUN = "WORLD_SIZE"
STARTERS = {
    TORCHRUN: "torchrun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpirun_rsh",
    "SLURM_STEP_NUM_TASKS": "srun",
}
"""Where each starter says how many processes there are; torchrun's word counts where there are several.

An allocation of Slurm may have more tasks than the step that this process belongs to: the step's count is meant.
"""
PR_SET_PDEATHSIG: Final = 1


def started_together() -> tuple[int, str]:
    """Return the number of processes started together and their starter; 1 and "" for one alone."""
    for variable, starter in STARTERS.items():
        text = os.environ.get(variable, "")
        if text.isdecimal():
            return (int(text), starter) if int(text) > 1 else (1, "")
    return 1, ""


def leads() -> bool:
    """Return whether this process is alone, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def processes_here() -> int:
    """Return the number of these processes on this machine."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(text)) if text.isdecimal() else started_together()[0]


def require_alone(what: str) -> None:
    """Raise UsageError unless this process was started alone."""
    count, starter = started_together()
    if count > 1:
        raise errors.UsageError(
            f"{what} runs in one process, and {starter} started {count}",
            hint=f"the same command without {starter}; `ddib model train` shares its work among processes",
        )


def require_torchrun(what: str) -> None:
    """Raise UsageError unless this process is alone or was started by torchrun."""
    count, starter = started_together()
    if count > 1 and starter != STARTERS[TORCHRUN]:
        raise errors.UsageError(
            f"{what} shares its work among processes of torchrun alone, and {starter} started {count}",
            hint=f"torchrun --nproc-per-node {count} --no-python ddib model train ... --out DIR",
        )


def end_with_parent() -> None:
    """On Linux, have the kernel kill this process as soon as its parent has ended; elsewhere nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def importing() -> Iterator[None]:
    """Let Ctrl-C end the program silently: Python would show a traceback of the module being imported."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)

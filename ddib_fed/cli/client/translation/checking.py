"""Reads every file once before anything is submitted: the one place where a path becomes the bytes of an item.

Only digests stay in memory; a file is read again when its job is submitted. All bad files are named at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddib_fed.cli.client.choosing import Chosen
from ddib_fed.cli.client.delivery import Input
from ddib_fed.cli.client.translation.order import Order
from ddib_fed.cli.output import next_steps
from ddib_fed.client.payload import Payload, payload
from ddib_fed.client.views import Media
from ddib_fed.errors import DdibError, FilesLeftOut, ImageUnreadable, InputError, error_class

MOST_LISTED = 1000
MOST_NAME = 255 - 18
"""Bytes of a file's name, less those of the hidden name under which it is written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as an item of a job."""

    path: Path
    given: Input
    item: Payload
    classes: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that is not translated, and why."""

    path: Path
    reason: str
    why: str
    error: DdibError | None = field(default=None, compare=False)

    @classmethod
    def of(cls, path: Path, error: DdibError) -> LeftOut:
        why = error.detail.replace(f"{path}: ", "").replace(f"{path} ", "").strip()
        return cls(path, error.reason, why, error)

    def as_error(self, hop: str) -> DdibError:
        return self.error or error_class(self.reason)(self.why, hop=hop)

    def line(self) -> str:
        return f"{self.path}: {self.why}  [{self.reason}]"

    def as_json(self) -> dict[str, object]:
        return {"file": self.path, "reason": self.reason, "why": self.why}


def read_files(
    chosen: Chosen,
    order: Order,
    institution: str,
    *,
    decode: bool,
    on_read: Callable[[int, int], None] | None = None,
) -> tuple[list[Entry], list[tuple[Path, DdibError]]]:
    """Read each file; those that can be sent, and the bad ones with what is wrong."""
    entries: list[Entry] = []
    bad: list[tuple[Path, DdibError]] = []
    for number, (path, given) in enumerate(zip(chosen.paths, chosen.inputs, strict=True)):
        classes = chosen.classes[number] if chosen.classes else None
        try:
            _check_name(given, path)
            item = payload(path)
            if decode:
                _check_picture(item)
        except DdibError as error:
            bad.append((path, error.kept()))
        except OSError as error:
            bad.append((path, InputError(f"{path} cannot be read: {error.strerror or error}", hop="client")))
        else:
            asked = order.digest(institution, classes)
            named = replace(given, sha256=item.sha256.hex(), asked=asked)
            entries.append(Entry(path, named, item, classes))
        if on_read is not None:
            on_read(number + 1, len(chosen.paths))
    return entries, bad


def _check_name(given: Input, path: Path) -> None:
    """Return if results can have this name."""
    try:
        longest = max(len(Path(name).name.encode()) for name, _ in given.file_names())
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: its name is no UTF-8", hint="rename it", hop="client") from error
    if longest > MOST_NAME:
        raise InputError(f"{path}: its name is too long for its results", hint="rename it", hop="client")


def _check_picture(item: Payload) -> None:
    """Return if it is no picture, or one that can be decoded."""
    if item.media is Media.NPY:
        return
    try:
        from ddib_fed.samples.images import ImageLimits, decode_image

        decode_image(item.read(), ImageLimits(max_bytes=item.size_bytes + 1))
    except ImageUnreadable:
        raise
    except DdibError:
        pass  # too large for the usual limits: the node has its own


def refused(bad: Sequence[tuple[Path, DdibError]], total: int, state: str, *, unnamed: int = 0) -> DdibError:
    """The error that names every bad file; of one file alone its own."""
    if total == 1:
        return bad[0][1]
    kinds = {type(error) for _, error in bad}
    kind = kinds.pop() if len(kinds) == 1 else InputError
    detail = f"{len(bad) + unnamed:,} of {total:,} files cannot be translated; {state}:\n" + listed(
        (LeftOut.of(path, error) for path, error in bad), unnamed
    )
    first = bad[0][1].hint if len(bad) == 1 else ""
    more = f"without {'it' if len(bad) == 1 else 'them'}: the same command with --skip-bad"
    # What else the errors say of one file does not hold for all.
    return kind(detail, hint=f"{first}\n{more}" if first else more, hop=bad[0][1].hop)


def left_out(found: Sequence[LeftOut], total: int, state: str) -> FilesLeftOut:
    """The error that a command ends with which left out these files; `state` is what became of the others."""
    steps = next_steps(each.as_error("client") for each in found) or "repair them"
    return FilesLeftOut(
        f"left out: {len(found):,} of {total:,} files; {state}:\n{listed(found)}",
        hint=f"{steps}\nthen, for what is missing: the same command again",
    )


def listed(found: Iterable[LeftOut], unnamed: int = 0) -> str:
    """Lines that name files, the first `MOST_LISTED` of them; `unnamed` is how many more there are without a name."""
    lines = [f"  {each.line()}" for each in found]
    more = max(0, len(lines) - MOST_LISTED) + unnamed
    return "\n".join([*lines[:MOST_LISTED], *([f"  and {more:,} more"] if more else [])])

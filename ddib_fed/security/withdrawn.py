"""Reads and edits withdrawn.txt: identities that a node refuses although their certificates are valid.

    # a comment
    spiffe://north.example/client/alice   # a comment on why

An identity is reinstated only by a fully readable list that no longer names it. A list that is
damaged, empty or missing keeps the previous identities withdrawn.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

from ddib_fed.errors import DdibError, InputError, PolicyDenied
from ddib_fed.files import MAX_SMALL_FILE_BYTES, private_folder, read_small, write_file
from ddib_fed.security.identity import Identity

WITHDRAWN: Final = "withdrawn.txt"
# The identities withdrawn when the node last read the list, or a command wrote it: detects a list that disappears while
# the node is down.
LAST_WITHDRAWN: Final = "withdrawn.last"
_BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
# Control characters and separators of lines: what one program shows as a new line hides a name in another's comment.
_BREAKING: Final = frozenset({"Cc", "Zl", "Zp"})
_HEADER: Final = (
    "# Identities that this node refuses although their certificates are good: one a line, # begins a comment.\n"
    "# ddib pki withdraw edits this file. Do not remove it.\n"
)
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list: the withdrawn identity, and what follows it, without the #."""

    identity: Identity
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The content of a list: its entries; why it cannot be fully read, and whom it then still withdraws."""

    entries: tuple[Entry, ...] = ()
    problem: str | None = None
    kept: frozenset[Identity] = frozenset()

    @property
    def identities(self) -> frozenset[Identity]:
        """Whom it withdraws."""
        return self.kept.union(entry.identity for entry in self.entries)


def parse_withdrawn(data: bytes, what: str) -> Withdrawn:
    """Read a list, which `problem` calls `what`: valid lines count even if others are invalid."""
    if data.startswith(_UTF16):
        return Withdrawn(problem=f"{what} is UTF-16; a list of withdrawn identities is UTF-8")
    try:
        text = data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        return Withdrawn(problem=f"{what}, line {number}: this is not UTF-8")
    entries: list[Entry] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            entries += _parse_line(line)
        except InputError as error:
            problems.append(f"{what}, line {number}: {error.detail}")
    return Withdrawn(tuple(entries), problems[0] if problems else None)


def _parse_line(line: str) -> list[Entry]:
    """The entry of a line, when it is neither empty nor a comment."""
    bare = line.removesuffix("\r")
    if any(unicodedata.category(character) in _BREAKING for character in bare if character != "\t"):
        raise InputError("it holds a control character")
    name, _hash, comment = bare.partition("#")
    if not name.strip(" \t"):
        return []
    try:
        return [Entry(Identity.parse(name.strip(" \t")), comment.strip())]
    except InputError as error:
        raise InputError(
            f"{ascii(name.strip())[:_SHOWN]} is not one identity of the form spiffe://INSTITUTION/client/NAME"
        ) from error


def judge(folder: Path, content: bytes | str | None, before: frozenset[Identity] | None = None) -> Withdrawn:
    """Read a list; if it cannot be fully read, or has lost everybody, whom it withdrew before stays withdrawn."""
    path, problem = folder / WITHDRAWN, None
    if before is None:
        last = last_withdrawn(folder)
        before, problem = last.identities, last.problem if content is None else None
    if isinstance(content, str):
        found = Withdrawn(problem=content)
    elif before and not (content or b"").removeprefix(_BOM).strip():
        how = "is gone" if content is None else "is empty"
        found = Withdrawn(
            problem=f"{path} {how}, and the identities it withdrew stay refused ({len(before)} in all)"
        )
    else:
        found = parse_withdrawn(content or b"", str(path))
    problem = found.problem or problem
    return Withdrawn(found.entries, problem, before if problem else frozenset())


def remedy(folder: Path) -> str:
    """What to do about a list that cannot be read."""
    kept, path = folder / LAST_WITHDRAWN, shlex.quote(str(folder / WITHDRAWN))
    if kept.exists() and not os.path.lexists(folder / WITHDRAWN):
        return (
            f"restore it: cp {shlex.quote(str(kept))} {path}; to reinstate: ddib pki withdraw --undo IDENTITY"
        )
    if not os.path.isfile(folder / WITHDRAWN) or not os.access(folder / WITHDRAWN, os.R_OK):  # noqa: PTH113 - never raises
        return f"namei -l {path} shows the file and who may read it"
    return f"correct {folder / WITHDRAWN}: UTF-8 text, one identity per line, # starts a comment"


def _content(path: Path) -> bytes | str | None:
    if not os.path.lexists(path):  # a dangling link is an unreadable list
        return None
    try:
        return read_small(path)
    except DdibError as error:
        return error.detail


def last_withdrawn(folder: Path) -> Withdrawn:
    """The identities that `keep_last` last recorded."""
    path = folder / LAST_WITHDRAWN
    content = _content(path)
    if isinstance(content, str):
        return Withdrawn(problem=content)
    return parse_withdrawn(content or b"", str(path))


def keep_last(folder: Path, identities: frozenset[Identity]) -> None:
    """Record who is withdrawn now; writes nothing if nothing changed."""
    noted = last_withdrawn(folder)
    if noted.identities == identities and noted.problem is None:
        return
    text = "".join(f"{identity}\n" for identity in sorted(identities))
    write_file(folder / LAST_WITHDRAWN, text.encode(), private=True)


def load_withdrawn(folder: Path) -> Withdrawn:
    """The list of a node's folder of certificates.

    Raises:
        InputError: It cannot be read, or is missing although it withdrew somebody.
    """
    found = judge(folder, _content(folder / WITHDRAWN))
    if found.problem:
        raise InputError(found.problem, hint=remedy(folder))
    return found


def refuse_withdrawn(folder: Path, identity: Identity) -> None:
    """Return if the node whose certificates are in `folder` does not refuse `identity`, else PolicyDenied."""
    if identity in load_withdrawn(folder).identities:
        raise PolicyDenied(
            f"{identity} is withdrawn in {folder / WITHDRAWN}",
            hint=f"choose another name, or reinstate it: ddib pki withdraw --undo {identity}",
        )


def withdraw(
    folder: Path, identity: Identity, *, comment: str = "", before: Callable[[], object] = lambda: None
) -> bool:
    """Withdraw `identity`, durably; whether it was not withdrawn before.

    Raises:
        InputError: The list cannot be read, is full, or the comment is not one line.
    """
    with _edited(folder) as (text, entries):
        if identity in entries.identities:
            return False
        lines = text if not text or text.endswith("\n") else text + "\n"
        note = f"  # {comment or f'withdrawn {date.today().isoformat()}'}"  # noqa: DTZ011 - the operator's day
        _write(folder, f"{lines or _HEADER}{identity}{note}\n", entries.identities | {identity}, before)
        return True


def reinstate(folder: Path, identity: Identity, *, before: Callable[[], object] = lambda: None) -> bool:
    """Reinstate `identity`, durably: its lines become comments. Arguments and result as of `withdraw`."""
    with _edited(folder) as (text, entries):
        if identity not in entries.identities:
            return False
        today = date.today().isoformat()  # noqa: DTZ011 - the operator's day
        lines = [
            f"# reinstated {today}: {line.strip()}"
            if any(entry.identity == identity for entry in _parse_line(line))
            else line
            for line in text.split("\n")
        ]
        _write(folder, "\n".join(lines), entries.identities - {identity}, before)
        return True


@contextmanager
def _edited(folder: Path) -> Iterator[tuple[str, Withdrawn]]:
    """The list's text and content, locked: two editors at once would lose a name."""
    private_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        entries = load_withdrawn(folder)
        content = _content(folder / WITHDRAWN)
        yield (content.removeprefix(_BOM).decode() if isinstance(content, bytes) else ""), entries
    finally:
        os.close(descriptor)


def _write(folder: Path, text: str, meant: frozenset[Identity], before: Callable[[], object]) -> None:
    """Replace the list after checking that the node will read the intended identities from it."""
    path, data = folder / WITHDRAWN, text.encode()
    if len(data) > MAX_SMALL_FILE_BYTES:
        raise InputError(
            f"{path} would have more than {MAX_SMALL_FILE_BYTES} bytes", hint=f"remove comments from {path}"
        )
    found = parse_withdrawn(data, str(path))
    if found.problem or found.identities != meant:
        raise InputError(
            found.problem or f"{path} would not name the intended identities",
            hint="give a comment of one line",
        )
    before()
    write_file(path, data, private=True)
    keep_last(folder, meant)

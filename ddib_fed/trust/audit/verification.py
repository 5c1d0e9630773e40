"""Reads a whole audit log and follows its chain, against heads that were noted elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddib_fed.trust.audit.lines import EMPTY, FIRST, Head, digest, follows


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of reading a whole log.

    Attributes:
        lines: Valid whole lines, from the first.
        head: Digest of the last of them; a copy kept elsewhere detects a truncated log.
        torn_bytes: Bytes after the last whole line: a write that a crash interrupted.
        broken_line: Number (from 1) of the first line that breaks the chain, or None.
        problem: What is wrong with it, or with the log as a whole.
        anchors: How many of the anchors that were given are lines of the log.
    """

    lines: int
    head: str
    torn_bytes: int = 0
    broken_line: int | None = None
    problem: str = ""
    anchors: int = 0

    @property
    def ok(self) -> bool:
        """Whether the chain of whole lines is unbroken; a torn end is a crash, not tampering."""
        return not self.problem


def verify(
    path: Path, *, noted: str | None = None, anchors: Mapping[int, tuple[str, str]] | None = None
) -> Verified:
    """Read a whole log and follow its chain; it is not changed.

    Args:
        path: The log.
        noted: A `head` of earlier, hex: one of the lines must have it as its digest, or the log was cut or replaced.
        anchors: For numbers of lines (from 0): the digest that the line must have, hex, and who noted it and when.

    A chain detects lines that were changed, removed or inserted. It cannot detect that the end was cut off,
    or that the whole file was rewritten: for that compare `head` with a copy kept elsewhere, or use the anchors that
    peers hold.

    Raises:
        FileNotFoundError: There is no log.
    """
    with path.open("rb") as file:
        return verify_lines(file, noted=noted, anchors=anchors)


def verify_lines(
    lines: Iterable[bytes],
    *,
    noted: str | None = None,
    anchors: Mapping[int, tuple[str, str]] | None = None,
) -> Verified:
    """As `verify`, of the lines of a log, each with its end; those behind a broken one are not taken."""
    head, torn = EMPTY, 0
    seen = noted is None or noted == FIRST
    matched, differs = 0, ""
    anchors = anchors or {}
    for line in lines:
        if not line.endswith(b"\n"):
            torn = len(line)
            break
        problem = follows(line, head)
        if problem:
            return Verified(head.n + 1, head.sha256, broken_line=head.n + 2, problem=problem, anchors=matched)
        head = Head(head.n + 1, digest(line))
        seen = seen or noted == head.sha256
        wanted = anchors.get(head.n)
        if wanted is not None and wanted[0] == head.sha256:
            matched += 1
        elif wanted is not None and not differs:
            differs = f"line {head.n + 1} is not the one that {wanted[1]}: the log was rewritten"
    if not seen:
        differs = "no line of it has the head that was noted"
    last = max(anchors, default=-1)
    if last > head.n and not differs:
        differs = f"it has {head.n + 1} lines, and line {last + 1} is one that {anchors[last][1]}: its end was cut off"
    return Verified(head.n + 1, head.sha256, torn, problem=differs, anchors=matched)

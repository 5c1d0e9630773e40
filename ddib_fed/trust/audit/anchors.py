"""The ends of a peer's audit log that lie in the own one, as a file for that peer, and the check of a log against it.

A log that was cut, rolled back or rewritten after its end went to a peer lacks a line that the peer noted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import InputError
from ddib_fed.files import read_small
from ddib_fed.trust.audit.lines import parsed
from ddib_fed.trust.identity import Identity

FORMAT: Final = "ddib-fed audit anchors 1"
MAX_ANCHORS: Final = 256
"""Of a file: the newest half, and of the others evenly spaced ones. A line between two of them is vouched for by the
later one, since the lines are a chain."""
ORDER_SLACK: Final = timedelta(hours=1)
"""Calls that run side by side bring a peer's ends slightly out of order; by more than this the peer's log went back."""


class Anchor(BaseModel):
    """One line of the peer's log: its number from 1, its SHA-256, and when it was noted here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    noted: datetime


class AnchorFile(BaseModel):
    """What one node noted of another's audit log.

    Attributes:
        format: Of this file.
        of: URI of the node whose log it is about.
        noted_by: URI of the node that noted it.
        anchors: By number of line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["ddib-fed audit anchors 1"] = FORMAT
    of: str
    noted_by: str
    anchors: tuple[Anchor, ...]

    def to_bytes(self) -> bytes:
        """As a file."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()

    def by_line(self) -> dict[int, tuple[str, str]]:
        """For `verification.verify`: digest and who noted it, by number of line from 0."""
        return {
            each.lines - 1: (each.sha256, f"{self.noted_by} noted on {each.noted:%Y-%m-%d at %H:%M} UTC")
            for each in self.anchors
        }


class Held(NamedTuple):
    """What the own log holds of one peer's."""

    anchors: tuple[Anchor, ...]
    contradiction: str


def read_anchors(path: Path, *, of: Identity) -> AnchorFile:
    """A file of anchors that a peer's operator sent.

    Args:
        path: The file.
        of: The node whose log it must be about.

    Raises:
        InputError: It is no such file, or about another node's log.
        FileMissing: There is none.
    """
    try:
        found = AnchorFile.model_validate_json(read_small(path, pipe=True))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path} is no file of anchors: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint="the peer's operator writes one: ddib audit anchors --peer INSTITUTION --out FILE",
        ) from error
    if found.of != of.uri:
        raise InputError(f"{path} is about the log of {found.of!a}, this node is {of}")
    return found


def held_of(log: Path, institution: str) -> Held:
    """The anchors of one peer's log that lie in the own log.

    Args:
        log: The own log.
        institution: The peer's.

    Raises:
        FileNotFoundError: There is no log.
    """
    anchors = tuple(_noted(log, institution))
    return Held(anchors, _contradiction(anchors))


def thinned(anchors: Sequence[Anchor]) -> tuple[Anchor, ...]:
    """At most `MAX_ANCHORS`, by number of line, the newest among them."""
    ordered = sorted({each.lines: each for each in anchors}.values(), key=lambda each: each.lines)
    newest = MAX_ANCHORS // 2
    older = ordered[:-newest]
    step = -(-len(older) // newest) or 1
    return (*older[::step], *ordered[-newest:])


def _noted(log: Path, institution: str) -> Iterator[Anchor]:
    with log.open("rb") as file:
        for line in file:
            if b'"peer_head"' not in line or (record := parsed(line)) is None:
                continue
            if _institution(str(record.get("peer"))) != institution:
                continue
            try:
                yield Anchor(lines=record["peer_lines"], sha256=record["peer_head"], noted=record["time"])
            except (KeyError, ValidationError):  # a line that somebody broke: `verify` finds it
                continue


def _institution(peer: str) -> str:
    return peer.removeprefix("spiffe://").partition("/")[0]


def _contradiction(anchors: Sequence[Anchor]) -> str:
    digests: dict[int, Anchor] = {}
    furthest: Anchor | None = None
    for each in anchors:
        known = digests.setdefault(each.lines, each)
        if known.sha256 != each.sha256:
            return (
                f"its line {each.lines} was one thing on {known.noted:%Y-%m-%d %H:%M} and another on "
                f"{each.noted:%Y-%m-%d %H:%M} UTC"
            )
        if furthest is not None and each.lines < furthest.lines and each.noted - furthest.noted > ORDER_SLACK:
            return (
                f"it had {furthest.lines} lines on {furthest.noted:%Y-%m-%d %H:%M} and {each.lines} on "
                f"{each.noted:%Y-%m-%d %H:%M} UTC"
            )
        if furthest is None or each.lines > furthest.lines:
            furthest = each
    return ""

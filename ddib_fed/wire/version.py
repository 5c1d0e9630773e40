"""The protocol versions of this release, and the choice of the version that both sides speak.

The highest version that both speak is used; different majors are never combined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ddib_fed.errors import Difference, MessageInvalid
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.mapping import from_message, to_message

MAX_VERSIONS = 16
"""How many versions a peer may list."""

MAX_NUMBER = 65_535
"""Largest major or minor."""


class Version(NamedTuple):
    """A protocol version, ordered by major and minor."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


SPOKEN: tuple[Version, ...] = tuple(Version(1, minor) for minor in range(6))
"""Every version this release speaks: its own minor, and those before."""

OLDEST = SPOKEN[0]

PICTURES = Version(1, 1)
"""The first version with pictures and classes; points need no more than 1.0."""

GUIDANCE = Version(1, 2)
"""The first version with guidance, and with classes of their own for the items of a job."""

CALIBRATION = Version(1, 3)
"""The first version with calibrations, and with a choice of the encoder."""

ECONOMY = Version(1, 4)
"""The first version with latents of 16 bits, learned grids and flow maps."""

TRUST = Version(1, 5)
"""The first version whose contracts name the fewest evaluations, and in which nodes tell each other the ends of their
audit logs."""


def versions_to_pb(versions: Iterable[Version] = SPOKEN) -> list[common_pb2.ProtocolVersion]:
    """The versions as messages."""
    return [to_message(version, common_pb2.ProtocolVersion) for version in versions]


def require_version(version: Version) -> Version:
    """The version itself."""
    if not (1 <= version.major <= MAX_NUMBER and version.minor <= MAX_NUMBER):
        raise MessageInvalid(f"{version} is no protocol version", facts={"field": "version"})
    return version


def version_from_pb(message: common_pb2.ProtocolVersion) -> Version:
    """One version read from the wire.

    Raises:
        MessageInvalid: It is not a version.
    """
    return require_version(from_message(message, Version))


def versions_from_pb(messages: Sequence[common_pb2.ProtocolVersion]) -> tuple[Version, ...]:
    """The versions that a peer lists.

    Raises:
        MessageInvalid: None, more than `MAX_VERSIONS`, or one that is no version.
    """
    if not 1 <= len(messages) <= MAX_VERSIONS:
        raise MessageInvalid(
            f"{len(messages)} protocol versions were listed, 1 to {MAX_VERSIONS} are allowed",
            facts={"field": "versions", "limit": MAX_VERSIONS},
        )
    return tuple(version_from_pb(message) for message in messages)


def highest_common(source: Iterable[Version], target: Iterable[Version]) -> Version | None:
    """The highest version in both lists, or None."""
    return max(set(source) & set(target), default=None)


def needed_difference(
    source: Iterable[Version], target: Iterable[Version], needed: Version
) -> Difference | None:
    """The difference to report if the highest common version is too old for the two sides; None otherwise."""
    ours, theirs = tuple(source), tuple(target)
    common = highest_common(ours, theirs)
    if common is not None and common >= needed:
        return None
    return version_difference(ours, theirs)


def version_difference(source: Iterable[Version], target: Iterable[Version]) -> Difference:
    """The difference to report if there is no common version."""
    return Difference(
        field="version",
        source=", ".join(map(str, sorted(source, reverse=True))),
        target=", ".join(map(str, sorted(target, reverse=True))),
        remedy="Upgrade ddib-fed on the side whose newest version is lower.",
    )

"""The root of the error tree, what a command ends with, and the fields in which two contracts differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self


class ExitCode(IntEnum):
    """What the `ddib` and node commands end with; documented in docs/troubleshooting.md and tested."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    BAD_INPUT = 3
    CONTRACT = 4
    REFUSED = 5
    NOT_FOUND = 6
    CONFLICT = 7
    EXHAUSTED = 8
    UNAVAILABLE = 9
    CORRUPT = 10
    JOB_FAILED = 11
    CANCELLED = 12
    OUT_OF_BOUNDS = 13
    PEER_FAULT = 14
    LEFT_OUT = 15


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which two contracts differ."""

    field: str
    source: str
    target: str
    remedy: str


class DdibError(Exception):
    """Root of the error tree."""

    reason: ClassVar[str] = "INTERNAL"
    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    sentence: ClassVar[str] = "internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        hint: str = "",
        hop: str = "",
        facts: Mapping[str, str | int | float] | None = None,
        retry_after_s: float | None = None,
        differences: tuple[Difference, ...] = (),
        incident: str = "",
    ) -> None:
        super().__init__(detail or self.sentence)
        self.detail = detail or self.sentence
        self.hint = hint
        self.hop = hop
        self.facts: dict[str, str] = {k: str(v) for k, v in (facts or {}).items()}
        self.retry_after_s = retry_after_s
        self.differences = differences
        self.incident = incident
        self.says = ""

    def kept(self) -> Self:
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    @classmethod
    def said_by(cls, institution: str) -> str:
        named = f"the node of {institution}" if institution else "this node"
        return cls.sentence.replace("this node", named)

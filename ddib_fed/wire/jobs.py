"""Job types shared by both ends of `TranslationService`: states, events and solver settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from ddib_fed.errors import SettingsInvalid
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.mapping import from_message, to_message


class JobState(StrEnum):
    """State of a job; the names are those of translation.proto without their prefix."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self in {JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}


class ItemState(StrEnum):
    """State of an item of a job; the names are those of translation.proto without their prefix."""

    RECEIVED = "RECEIVED"
    ENCODED = "ENCODED"
    DECODED = "DECODED"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Settings:
    """Solver settings, for both nodes.

    Attributes:
        solver: ``unipc``, ``ddim``, ``rk4``, ``alf`` or ``flow-map``.
        order: 1 to 4 if the solver has orders, 0 for its default.
        evaluations: Network evaluations of one leg, 1 to 10,000.
        grid: ``default``, ``uniform-lambda``, ``karras``, ``integer``, ``integer:T``, or ``learned`` for the steps that
            each node's own model was tuned to.
        depth: Fraction of the path to noise, in (0, 1]; below 1 the latent keeps some of the picture, and
            both nodes' policies must allow it.
        encoder: ``ode`` or ``mixed``: how the source encodes; the latents of ``mixed`` show more of the picture,
            and both nodes' policies must allow them.
    """

    solver: str = "unipc"
    order: int = 0
    evaluations: int = 48
    grid: str = "default"
    depth: float = 1.0
    encoder: str = "ode"

    def of_quality(self, quality: str | None) -> Settings:
        """These settings with solver, order, number and grid of a name in `QUALITIES`; themselves for None.

        Raises:
            SettingsInvalid: There is no such quality, or one of the four is set beside it.
        """
        if quality is None:
            return self
        if quality not in QUALITIES:
            raise SettingsInvalid(
                f"there is no quality {quality[:40]!r}", hint=f"one of {', '.join(QUALITIES)}"
            )
        default, chosen = Settings(), QUALITIES[quality]
        for name in ("solver", "order", "evaluations", "grid"):
            if getattr(self, name) != getattr(default, name):
                raise SettingsInvalid(
                    f"the quality {quality} chooses {name} itself, and {getattr(self, name)} is given beside it",
                    hint=f"leave --{name} or --quality out",
                )
        return replace(chosen, depth=self.depth, encoder=self.encoder)


QUALITIES: Final[Mapping[str, Settings]] = MappingProxyType(
    {
        "draft": Settings(evaluations=12, grid="learned"),
        "standard": Settings(),
        "exact": Settings(evaluations=96),
    }
)
"""What a quality stands for; steps.json of a model says what its draft reaches."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a job; `sequence` increases, also across restarts of the node."""

    sequence: int
    state: JobState
    item: int = 0
    stage: str = ""
    step: int = 0
    steps: int = 0
    reason: str = ""
    items_done: int = 0
    items: int = 0


def settings_to_pb(settings: Settings) -> common_pb2.SolverSettings:
    return to_message(settings, common_pb2.SolverSettings)


def settings_from_pb(message: common_pb2.SolverSettings) -> Settings:
    return from_message(message, Settings)

"""States, settings and records, and the messages that carry them between machines.

Values are not checked here: received messages pass `check` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ddib_fed.errors import SettingsInvalid
from ddib_fed.v1 import common_pb2, translation_pb2

if TYPE_CHECKING:
    from ddib_fed.engine.record import Translation


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
        solver: ``unipc``, ``ddim`` or ``flow-map``.
        order: 1 to 4 if the solver has orders, 0 for its default.
        evaluations: Network evaluations of one leg, 1 to 10,000.
        grid: ``default``, ``uniform-lambda``, ``integer``, or ``learned`` for the steps that
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


def settings_to_pb(settings: Settings) -> common_pb2.SolverSettings:
    return common_pb2.SolverSettings(**asdict(settings))


def settings_from_pb(message: common_pb2.SolverSettings) -> Settings:
    return Settings(*(getattr(message, field.name) for field in fields(Settings)))


# Records of finished translations

_LOCAL: Final = frozenset({"format", "input", "files", "doubtful", "doubts", "asked_sha256"})
"""What the client adds to the record."""


def provenance_message(stored: Mapping[str, Any]) -> translation_pb2.Provenance:
    """The stored record of a finished translation, for the client."""
    return translation_pb2.Provenance(**{name: stored[name] for name in stored.keys() - _LOCAL})


def provenance_record(message: translation_pb2.Provenance) -> Translation:
    """The record that a source node sent; its fields were checked when the message arrived."""
    # Which commands without jobs do not need.
    from google.protobuf.json_format import MessageToDict

    from ddib_fed.engine.record import Translation

    values = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # A map has another order in each process; a record that is written again must be the same bytes.
    values["seconds"] = dict(sorted(values["seconds"].items()))
    return Translation.model_validate(values)

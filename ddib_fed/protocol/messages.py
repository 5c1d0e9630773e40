"""Maps domain types to protobuf messages and back, by the names and types of their fields.

    domain type                       message
    dataclass, NamedTuple, pydantic   message of fields of the same names
    X | None                          a field with presence, not set for None
    tuple[X, ...]                     repeated
    Mapping[str, X]                   map
    Enum                              enum, by the member's name
    str                               also an enum, by its name in lower case, or bytes, in hex

Values are not checked here: received messages pass `check` first, and domain types check themselves.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ddib_fed.errors import SettingsInvalid
from ddib_fed.v1 import common_pb2, translation_pb2

if TYPE_CHECKING:
    from ddib_fed.engine.record import Translation

Domain = TypeVar("Domain")
Wire = TypeVar("Wire", bound=Message)
Member = TypeVar("Member", bound=Enum)
UNKNOWN = "UNKNOWN"
"""The name of an unspecified number."""


def to_message(value: object, kind: type[Wire], *, local: Collection[str] = (), **given: Any) -> Wire:
    """A domain value as a message.

    Args:
        value: The value.
        kind: The message's class.
        local: Fields of the value that the message does not have, and that are not sent.
        given: Fields of the message, ready to be set; the value's are not read for them.

    Raises:
        TypeError: The value has a field that the message does not have, and that is neither local nor given.
        KeyError: A text is no name of the enum.
    """
    own: Any = type(value)  # mypy takes no type[object] for hashable
    pairs = _pairs(own, kind.DESCRIPTOR, frozenset((*local, *given)))
    return kind(**{name: _encoded(getattr(value, name), field) for name, field, _ in pairs}, **given)


def from_message(
    message: Message, kind: type[Domain], *, local: Collection[str] = (), **given: Any
) -> Domain:
    """A checked message as a domain value; arguments and errors as of `to_message`, and those of the class."""
    wanted: Any = kind
    pairs = _pairs(wanted, message.DESCRIPTOR, frozenset((*local, *given)))
    return kind(**{name: _decoded(message, field, hint) for name, field, hint in pairs}, **given)


def enum_members(kind: type[Member], enum: EnumDescriptor) -> dict[int, Member]:
    """The members of a Python enum by their numbers on the wire, those that both have."""
    names = _enum_names(enum)
    return {number: kind[name] for number, name in names.items() if name in kind.__members__}


@cache
def _pairs(
    kind: type, descriptor: Descriptor, without: frozenset[str]
) -> tuple[tuple[str, FieldDescriptor, Any], ...]:
    """Name, message field and type of each field that both have."""
    if dataclasses.is_dataclass(kind):
        found: Collection[str] = [field.name for field in dataclasses.fields(kind) if field.init]
    else:
        found = kind.model_fields if hasattr(kind, "model_fields") else kind._fields  # type: ignore[attr-defined]
    names = [name for name in found if name not in without]
    missing = [name for name in names if name not in descriptor.fields_by_name]
    if missing:
        raise TypeError(f"{descriptor.name} has no {', '.join(missing)}, which {kind.__name__} has")
    hints = get_type_hints(kind)
    return tuple((name, descriptor.fields_by_name[name], hints[name]) for name in names)


def _encoded(value: Any, field: FieldDescriptor) -> Any:
    if not field.is_repeated:
        return None if value is None else _encoded_one(value, field)
    return dict(value) if isinstance(value, Mapping) else [_encoded_one(item, field) for item in value]


def _encoded_one(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return to_message(value, GetMessageClass(field.message_type))
    if field.enum_type is not None:
        name = value.name if isinstance(value, Enum) else value.upper()
        return (
            field.enum_type.values_by_name[_prefix(field.enum_type) + name].number if name != UNKNOWN else 0
        )
    return bytes.fromhex(value) if field.type == field.TYPE_BYTES and isinstance(value, str) else value


def _decoded(message: Message, field: FieldDescriptor, hint: Any) -> Any:
    if get_origin(hint) in {Union, types.UnionType}:  # X | None
        if field.has_presence and not message.HasField(field.name):
            return None
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    value = getattr(message, field.name)
    if get_origin(hint) is tuple:
        return tuple(_decoded_one(item, field, get_args(hint)[0]) for item in value)
    return dict(value) if field.is_repeated else _decoded_one(value, field, hint)


def _decoded_one(value: Any, field: FieldDescriptor, kind: Any) -> Any:
    if field.message_type is not None:
        return from_message(value, kind)
    if field.enum_type is not None:
        name = _enum_names(field.enum_type).get(value, UNKNOWN)
        return name.lower() if kind is str else kind[name]
    return value.hex() if field.type == field.TYPE_BYTES and kind is str else value


@cache
def _enum_names(enum: EnumDescriptor) -> Mapping[int, str]:
    return {value.number: value.name.removeprefix(_prefix(enum)) for value in enum.values if value.number}


@cache
def _prefix(enum: EnumDescriptor) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"


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
    return to_message(settings, common_pb2.SolverSettings)


def settings_from_pb(message: common_pb2.SolverSettings) -> Settings:
    return from_message(message, Settings)


# Records of finished translations

_LOCAL = ("format", "input", "files", "doubtful", "doubts", "asked_sha256")
"""What the client adds to the record."""
_TERMS = ("low", "high", "bits")


def provenance_message(record: Translation) -> translation_pb2.Provenance:
    """The record of a finished translation, for the client."""
    picture, figures = record.picture, None
    if picture is not None:
        terms = common_pb2.PictureTerms(**{name: getattr(picture, name) for name in _TERMS})
        figures = to_message(picture, translation_pb2.PictureFigures, local=_TERMS, terms=terms)
    return to_message(
        record,
        translation_pb2.Provenance,
        local=_LOCAL,
        picture=figures,
        classifier_sha256=bytes.fromhex(record.classifier_sha256) or None,
        calibration_sha256=bytes.fromhex(record.calibration_sha256) or None,
        policy_sha256=bytes.fromhex(record.policy_sha256) or None,
    )


def provenance_record(pb: translation_pb2.Provenance) -> Translation:
    """The record that a source node sent; its fields were checked when the message arrived."""
    from ddib_fed.engine.record import (
        PictureFigures,
        Translation,
    )  # pydantic, which commands without jobs do not need

    picture = None
    if pb.HasField("picture"):
        terms = {name: getattr(pb.picture.terms, name) for name in _TERMS}
        picture = from_message(pb.picture, PictureFigures, **terms)
    # A map has another order in each process; a record that is written again must be the same bytes.
    seconds = dict(sorted(pb.seconds.items()))
    return from_message(pb, Translation, local=_LOCAL, picture=picture, seconds=seconds)

"""Maps domain types to protobuf messages and back, by the names and types of their fields.

    domain type                       message
    dataclass, NamedTuple, pydantic   message of fields of the same names
    X | None                          a field with presence, not set for None
    tuple[X, ...]                     repeated
    Mapping[str, X]                   map
    Enum                              enum, by the member's name
    str                               also an enum, by its name in lower case, or bytes, in hex

Values are not checked here: received messages pass `fields.check` first, and domain types check themselves.
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
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ddib_fed.errors import SettingsInvalid
from ddib_fed.v1 import common_pb2

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
        ValueError: A text is no name of the enum.
    """
    own: Any = type(value)  # mypy takes no type[object] for hashable
    pairs = _pairs(own, kind.DESCRIPTOR, frozenset((*local, *given)))
    return kind(**{name: _encoded(getattr(value, name), field) for name, field, _ in pairs}, **given)


def from_message(
    message: Message, kind: type[Domain], *, local: Collection[str] = (), **given: Any
) -> Domain:
    """A message as a domain value.

    Args:
        message: The message, checked.
        kind: The value's class.
        local: Fields of the value that the message does not have, and that keep their defaults.
        given: Fields of the value; the message's are not read for them.

    Raises:
        TypeError: The value has a field that the message does not have, and that is neither local nor given.
        DdibError: The class refuses a value.
    """
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
    hints = get_type_hints(kind)
    names = [name for name in _names(kind) if name not in without]
    missing = [name for name in names if name not in descriptor.fields_by_name]
    if missing:
        raise TypeError(f"{descriptor.name} has no {', '.join(missing)}, which {kind.__name__} has")
    return tuple((name, descriptor.fields_by_name[name], hints[name]) for name in names)


def _names(kind: Any) -> Collection[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    fields: Collection[str] = kind.model_fields if hasattr(kind, "model_fields") else kind._fields
    return fields


def _encoded(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if field.is_repeated:
        return [_encoded_one(item, field) for item in value]
    return None if value is None else _encoded_one(value, field)


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
    """A field's value in the domain type."""
    inner, optional = _without_none(hint)
    if optional and field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if get_origin(inner) is tuple:
        return tuple(_decoded_one(item, field, get_args(inner)[0]) for item in value)
    if field.is_repeated:
        return dict(value)
    return _decoded_one(value, field, inner)


def _decoded_one(value: Any, field: FieldDescriptor, kind: Any) -> Any:
    if field.message_type is not None:
        return from_message(value, kind)
    if field.enum_type is not None:
        name = _enum_names(field.enum_type).get(value, UNKNOWN)
        return name.lower() if kind is str else kind[name]
    return value.hex() if field.type == field.TYPE_BYTES and kind is str else value


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    (inner,) = (part for part in get_args(hint) if part is not types.NoneType)
    return inner, True


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

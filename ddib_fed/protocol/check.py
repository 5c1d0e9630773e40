"""Refuses messages with fields that are not in protos/, or with values outside the limits that are stated there.

Requests and answers pass through `check` before any part of them is used. The limits are options of the fields, see
protos/ddib_fed/v1/limits.proto; what a domain type demands beyond them is checked where it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from ddib_fed.errors import DdibError, MessageInvalid, SettingsInvalid, UnknownFields
from ddib_fed.files import DIGEST_BYTES

PACKAGE: Final = "ddib_fed.v1"
SETTINGS: Final = frozenset({"SolverSettings", "GuidanceSettings"})
"""Messages whose values are the user's choice: a wrong one is `SettingsInvalid`."""
UNREAD: Final = "Chunk"
"""Its data would be copied; `Joiner` checks them."""
MAX_ITEMS: Final = 16
_WHOLE: Final = frozenset({FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64})
_DEFAULTS: Final[Mapping[int, tuple[float, float]]] = {
    FieldDescriptor.CPPTYPE_STRING: (0, 64),  # characters
    FieldDescriptor.CPPTYPE_DOUBLE: (-1e12, 1e12),
    FieldDescriptor.CPPTYPE_BOOL: (0, 1),
    **dict.fromkeys(_WHOLE, (0, 2**53)),
}


class Limits(NamedTuple):
    """The limits of one field; `low` and `high` are of its type's values, lengths or bytes."""

    name: str
    field: FieldDescriptor
    low: float
    high: float
    max_items: int
    required: bool
    error: type[DdibError]


def check(message: Any) -> None:
    """Return if a message has only known fields within their limits.

    Messages of other packages (gRPC's Health) and other objects pass.

    Raises:
        UnknownFields: It, or a message inside it, has a field that this release does not know.
        SettingsInvalid: A solver's setting is outside its limits.
        MessageInvalid: Another field is; `facts["field"]` names it.
    """
    if not isinstance(message, Message) or message.DESCRIPTOR.file.package != PACKAGE:
        return
    if has_unknown_fields(message):
        raise UnknownFields(f"a {message.DESCRIPTOR.name} has fields that this release does not know")
    _check_fields(message)


def has_unknown_fields(message: Message) -> bool:
    """Whether the message, or one inside it, has a field that its descriptor does not name.

    Reads no field that is not a message itself: reading `bytes` would copy them.
    """
    if len(UnknownFieldSet(message)) > 0:
        return True
    return any(
        has_unknown_fields(inner)
        for each in limits_of(message.DESCRIPTOR)
        if each.field.message_type is not None
        for inner in _values(message, each.field)
        if isinstance(inner, Message)
    )


def _check_fields(message: Message) -> None:
    if message.DESCRIPTOR.name == UNREAD:
        return
    for limits in limits_of(message.DESCRIPTOR):
        field = limits.field
        if field.is_repeated:
            count = len(getattr(message, field.name))
            if count > limits.max_items:
                raise _outside(limits, f"must be at most {limits.max_items} in number, not {count}")
        elif field.has_presence and not message.HasField(field.name):
            if limits.required:
                raise _outside(limits, "must be set")
            continue
        for value in _values(message, field):
            if isinstance(value, Message):
                _check_fields(value)
            else:
                _check_value(limits, value)


def _check_value(limits: Limits, value: str | bytes | float) -> None:
    size = len(value) if isinstance(value, str | bytes) else value
    # Written so that NaN fails.
    if not limits.low <= size <= limits.high:
        if limits.field.enum_type is not None and not value:
            raise _outside(limits, "must be set")
        unit = " characters" if isinstance(value, str) else " bytes" if isinstance(value, bytes) else ""
        raise _outside(limits, f"must be from {limits.low:g} to {limits.high:g}{unit}")


def _outside(limits: Limits, detail: str) -> DdibError:
    return limits.error(f"{limits.name} {detail}", facts={"field": limits.field.name})


def _values(message: Message, field: FieldDescriptor) -> Iterable[Any]:
    """The value of a field, or its several; of a map the values."""
    if not field.is_repeated:
        return (
            (getattr(message, field.name),) if not field.has_presence or message.HasField(field.name) else ()
        )
    values = getattr(message, field.name)
    return list(values.values()) if isinstance(values, Mapping) else values


@cache
def limits_of(descriptor: Descriptor) -> tuple[Limits, ...]:
    return tuple(_of_field(descriptor.name, field) for field in descriptor.fields)


def _of_field(message: str, field: FieldDescriptor) -> Limits:
    kind, value = field.message_type, field
    if kind is not None and kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"]
    low, high = _DEFAULTS.get(value.cpp_type, (0, 0))
    if value.type == value.TYPE_BYTES:
        low = high = DIGEST_BYTES
    elif value.enum_type is not None:
        low, high = 1, max(value.enum_type.values_by_number)
    stated = {option.name: set_to for option, set_to in field.GetOptions().ListFields()}
    settings = SETTINGS & {message, "" if kind is None else kind.name}
    return Limits(
        f"{message}.{field.name}",
        field,
        stated.get("min", low),
        stated.get("max", high),
        stated.get("max_items", MAX_ITEMS),
        stated.get("required", False),
        SettingsInvalid if settings else MessageInvalid,
    )

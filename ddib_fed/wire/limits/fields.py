"""Refuses messages with fields that this release does not know, or with values outside their stated limits.

Requests and answers pass through `check` before any part of them is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from ddib_fed.errors import DdibError, UnknownFields
from ddib_fed.wire.limits.kinds import Anything, Bytes, Checked, Choice, Inner, Many, Number, Text
from ddib_fed.wire.limits.table import FIELDS

PACKAGE: Final = "ddib_fed.v1"


def check(message: Any, *, unknown: bool = True) -> None:
    """Return if a message has only known fields within their limits.

    Messages of other packages (gRPC's Health) and other objects pass.

    Args:
        message: What was parsed.
        unknown: Whether unknown fields are refused too.

    Raises:
        UnknownFields: It, or a message inside it, has a field that this release does not know.
        SettingsInvalid: A solver's setting is outside its limits.
        MessageInvalid: Another field is; `facts["field"]` names it.
    """
    if not isinstance(message, Message) or message.DESCRIPTOR.file.package != PACKAGE:
        return
    if unknown and has_unknown_fields(message):
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
        for field in _nested(message.DESCRIPTOR)
        for inner in _messages(message, field)
    )


def _check_fields(message: Message) -> None:
    name = message.DESCRIPTOR.name
    for field, limit in _limited(message.DESCRIPTOR):
        if isinstance(limit, Many):
            _check_many(message, field, limit)
        elif isinstance(limit, Inner):
            if limit.required and not message.HasField(field.name):
                raise _outside(limit, name, field.name, "must be set")
            for inner in _messages(message, field):
                _check_fields(inner)
        elif not field.has_presence or message.HasField(field.name):
            _require(limit, name, field.name, getattr(message, field.name))


def _check_many(message: Message, field: FieldDescriptor, limit: Many) -> None:
    name, values = message.DESCRIPTOR.name, getattr(message, field.name)
    if not limit.least <= len(values) <= limit.most:
        detail = f"must be {limit.least} to {limit.most}, not {len(values)}"
        raise _outside(limit, name, field.name, detail)
    if isinstance(limit.each, Inner):
        for inner in _messages(message, field):
            _check_fields(inner)
        return
    for value in values.values() if isinstance(values, Mapping) else values:
        _require(limit.each, name, field.name, value)


def _require(limit: Number | Text | Bytes | Choice, message: str, field: str, value: Any) -> None:
    problem = limit.problem(value)
    if problem:
        raise _outside(limit, message, field, problem)


def _outside(limit: Checked, message: str, field: str, detail: str) -> DdibError:
    return limit.error(f"{message}.{field} {detail}", facts={"field": field})


@cache
def _limited(
    descriptor: Descriptor,
) -> tuple[tuple[FieldDescriptor, Checked], ...]:
    limits = FIELDS[descriptor.name]
    return tuple(
        (field, limit) for field in descriptor.fields if not isinstance(limit := limits[field.name], Anything)
    )


@cache
def _nested(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    return tuple(field for field in descriptor.fields if field.message_type is not None)


def _messages(message: Message, field: FieldDescriptor) -> Sequence[Message]:
    """The messages in a field: one, several, or a map's values when they are messages."""
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        if inner.fields_by_name["value"].message_type is None:
            return ()
        return list(getattr(message, field.name).values())
    if field.is_repeated:
        return list(getattr(message, field.name))
    return (getattr(message, field.name),) if message.HasField(field.name) else ()

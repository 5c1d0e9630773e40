"""Every call, message and field of the protos with its type and bound, and every key of metadata, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from ddib_fed.v1 import admin_pb2, calibration_pb2, common_pb2, decoding_pb2, identity_pb2, translation_pb2
from ddib_fed.wire.limits.kinds import Anything, Bytes, Choice, Inner, Limit, Many, Number, Text
from ddib_fed.wire.limits.metadata import METADATA
from ddib_fed.wire.limits.table import FIELDS

FILES = (common_pb2, decoding_pb2, calibration_pb2, translation_pb2, identity_pb2, admin_pb2)
GOLDEN = Path(__file__).parents[2] / "data" / "surface.txt"
_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def surface() -> str:
    """The whole text, one line for each call, enum value and field."""
    fields = [line for module in FILES for line in _file(module.DESCRIPTOR)]
    beside = [
        f"metadata {key}: {entry.where}; at most {entry.most} bytes; {entry.what}"
        for key, entry in METADATA.items()
    ]
    return "\n".join([*fields, "# beside messages", *beside]) + "\n"


def _file(file: FileDescriptor) -> Iterator[str]:
    yield f"# {file.name}"
    for service in file.services_by_name.values():
        for method in service.methods:
            asked, given = (
                f"{'stream ' if streams else ''}{kind.name}"
                for streams, kind in (
                    (method.client_streaming, method.input_type),
                    (method.server_streaming, method.output_type),
                )
            )
            yield f"call {service.name}.{method.name}: {asked} -> {given}"
    for enum in file.enum_types_by_name.values():
        for value in enum.values:
            yield f"enum {enum.name}: {value.name} = {value.number}"
    for message in file.message_types_by_name.values():
        yield from _message(message)


def _message(message: Descriptor) -> Iterator[str]:
    if not message.fields:
        yield f"{message.name}: no fields"
    for inner in message.nested_types:
        assert inner.GetOptions().map_entry, inner.full_name
    for field in message.fields:
        limit = FIELDS[message.name][field.name]
        yield f"{message.name}.{field.name} = {field.number}: {_type(field)}, {_bound(limit)}"


def _type(field: FieldDescriptor) -> str:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, value = (_type(kind.fields_by_name[name]) for name in ("key", "value"))
        return f"map of {key} to {value}"
    name = kind.name if kind else field.enum_type.name if field.enum_type else _SCALARS[field.type]
    if field.is_repeated:
        return f"repeated {name}"
    oneof = field.containing_oneof
    return f"{name} of oneof {oneof.name}" if oneof is not None and len(oneof.fields) > 1 else name


def _bound(limit: Limit) -> str:
    match limit:
        case Number(low=low, high=high):
            return f"{low!r} to {high!r}"
        case Text(longest=longest, pattern=pattern):
            return f"at most {longest} characters" + (f" of {pattern}" if pattern else "")
        case Bytes(least=least, most=most):
            return f"{least} to {most} bytes"
        case Choice():
            return "set"
        case Inner(required=required):
            return "set, its own fields" if required else "its own fields"
        case Many(each=each, most=most, least=least):
            return f"{least} to {most}, each {_bound(each)}"
        case Anything(by=by):
            return f"checked by {by.rpartition('.')[2]}" if by else "every value of the type"


if __name__ == "__main__":
    GOLDEN.write_text(surface(), encoding="utf-8")

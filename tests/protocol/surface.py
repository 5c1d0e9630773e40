"""Every call, message and field of the protos with its type and bound, and every key of metadata, as lines of text."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from ddib_fed.protocol.messages import Limits, limits_of
from ddib_fed.v1 import calibration_pb2, common_pb2, decoding_pb2, identity_pb2, translation_pb2


class Entry(NamedTuple):
    """One key of metadata: where, the most bytes, and what."""

    where: str
    most: int
    what: str


FILES = (common_pb2, decoding_pb2, calibration_pb2, translation_pb2, identity_pb2)
GOLDEN = Path(__file__).parents[1] / "data" / "surface.txt"
METADATA: Mapping[str, Entry] = {
    "ddib-error-bin": Entry("end of a call that failed", 8_192, "ErrorDetail"),
    "ddib-time": Entry("end of each call", 32, "Unix time of the answering node, in seconds"),
    "ddib-trace": Entry("end of NegotiateContract, where the target's [telemetry] peers lists the caller", 1, '"1"'),
    "traceparent": Entry(
        "start of Decode, where both nodes' [telemetry] peers list each other; start of SubmitJob and "
        "FetchResults of the own clients",
        55,
        "W3C Trace Context: numbers of a trace and a span, 24 random bytes, and a flag",
    ),
}  # fmt: skip
"""The metadata that calls may carry beside their messages, by key: nothing else of ours crosses."""
_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def surface() -> str:
    """The whole text, one line for each call, enum value and field."""
    fields = [line for module in FILES for line in lines_of(module.DESCRIPTOR)]
    beside = [
        f"metadata {key}: {entry.where}; at most {entry.most} bytes; {entry.what}"
        for key, entry in METADATA.items()
    ]
    return "\n".join([*fields, "# beside messages", *beside]) + "\n"


def lines_of(file: FileDescriptor) -> Iterator[str]:
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
    for limits in limits_of(message).values():
        field = limits.field
        yield f"{message.name}.{field.name} = {field.number}: {_type(field)}, {_bound(limits)}"


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


def _bound(limits: Limits) -> str:
    field, each = limits.field, ""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        kind, field = kind.fields_by_name["value"].message_type, kind.fields_by_name["value"]
    if kind is not None:
        each = "set, its own fields" if limits.required else "its own fields"
    elif field.cpp_type != field.CPPTYPE_BOOL:
        unit = {field.TYPE_STRING: " characters", field.TYPE_BYTES: " bytes"}.get(field.type, "")
        each = f"{limits.low:.17g} to {limits.high:.17g}{unit}"
    else:
        each = "either"
    return f"at most {limits.max_items}, each {each}" if limits.field.is_repeated else each


if __name__ == "__main__":
    GOLDEN.write_text(surface(), encoding="utf-8")

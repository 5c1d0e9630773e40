"""What is outside the limits of protos/, or in no field of theirs, is refused wherever it stands."""

import math

import pytest
from google.protobuf.message_factory import GetMessageClass

from ddib_fed.errors import InputError, MessageInvalid
from ddib_fed.protocol.messages import Limits, check, limits_of
from ddib_fed.v1 import decoding_pb2, translation_pb2
from tests.protocol.surface import FILES

MESSAGES = {
    descriptor.name: descriptor
    for file in FILES
    for descriptor in file.DESCRIPTOR.message_types_by_name.values()
}


def filled(descriptor, without: str = ""):
    """A message that passes: what must be set is set."""
    message = GetMessageClass(descriptor)()
    for limits in limits_of(descriptor).values():
        field = limits.field
        if field.is_repeated or field.name == without or (field.has_presence and not limits.required):
            continue
        if field.message_type is not None:
            getattr(message, field.name).CopyFrom(filled(field.message_type))
        elif field.type == field.TYPE_BYTES:
            setattr(message, field.name, bytes(int(limits.low)))
        elif limits.low > 0:
            setattr(message, field.name, math.ceil(limits.low))
    return message


def outside(field, limits: Limits) -> list:
    """Values outside the limits that the field's type can hold."""
    if field.type == field.TYPE_STRING:
        return ["x" * (int(limits.high) + 1)]
    if field.type == field.TYPE_BYTES:
        return [bytes(int(limits.high) + 1), *([bytes(int(limits.low) - 1)] if limits.low else [])]
    if field.type == field.TYPE_DOUBLE:
        return [math.nan, math.inf, -math.inf, 1e300, math.nextafter(limits.low, -math.inf)]
    most = 2**32 - 1 if field.cpp_type == field.CPPTYPE_UINT32 else 2**64 - 1
    if field.cpp_type in {field.CPPTYPE_UINT32, field.CPPTYPE_UINT64}:
        return [value for value in (0, most) if not limits.low <= value <= limits.high]
    return (
        []
        if field.enum_type is None
        else [value for value in (0, 99) if not limits.low <= value <= limits.high]
    )


def wrong(limits: Limits) -> list:
    """Messages that hold the field outside its limits."""
    field, made = limits.field, []
    owner, kind = field.containing_type, field.message_type
    is_map = kind is not None and kind.GetOptions().map_entry
    if limits.required:
        made.append(filled(owner, without=field.name))
    value = kind.fields_by_name["value"] if is_map else field
    for each in [] if value.message_type is not None else outside(value, limits):
        made.append(filled(owner))
        if is_map:
            getattr(made[-1], field.name)["key"] = each
        elif field.is_repeated:
            getattr(made[-1], field.name).append(each)
        else:
            setattr(made[-1], field.name, each)
    if field.is_repeated and not is_map and kind is not None and limits.max_items <= 100:
        made.append(filled(owner))
        getattr(made[-1], field.name).extend([filled(kind)] * (limits.max_items + 1))
    return made


def test_a_message_within_its_limits_passes() -> None:
    for descriptor in MESSAGES.values():
        check(filled(descriptor))


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_value_outside_its_limits_is_refused_by_name(name) -> None:
    """NaN, infinities, too long, too many, and not set where it must be: of each field."""
    for limits in limits_of(MESSAGES[name]).values():
        for message in wrong(limits):
            with pytest.raises(InputError) as caught:
                check(message)
            assert caught.value.facts["field"] == limits.field.name
            assert type(caught.value) is limits.error


def test_a_wrong_value_is_found_inside_another_message() -> None:
    answer = translation_pb2.ListJobsResponse(jobs=[filled(MESSAGES["Job"])] * 2)
    answer.jobs[1].finished = 1e300
    with pytest.raises(MessageInvalid, match=r"Job\.finished"):
        check(answer)


def test_a_list_of_too_many_is_refused_before_it_is_read() -> None:
    side = filled(MESSAGES["ContractSide"])
    side.class_names.extend(["x" * 65] * 10_001)
    with pytest.raises(MessageInvalid, match="10000 in number"):
        check(decoding_pb2.NegotiateContractRequest(source=side))

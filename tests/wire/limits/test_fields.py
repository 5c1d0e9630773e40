"""Every field of every message has a limit, and what is outside it is refused wherever it stands."""

from __future__ import annotations

import math

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from ddib_fed.errors import InputError, MessageInvalid, SettingsInvalid, UnknownFields
from ddib_fed.v1 import admin_pb2, calibration_pb2, common_pb2, decoding_pb2, identity_pb2, translation_pb2
from ddib_fed.wire.contracts.contract import LARGEST_VALUE
from ddib_fed.wire.limits.fields import check
from ddib_fed.wire.limits.kinds import Anything, Bytes, Choice, Inner, Many, Number, Text
from ddib_fed.wire.limits.shared import LAST_MOMENT
from ddib_fed.wire.limits.table import FIELDS

FILES = (admin_pb2, calibration_pb2, common_pb2, decoding_pb2, identity_pb2, translation_pb2)
MESSAGES = {
    name: GetMessageClass(descriptor)
    for file in FILES
    for name, descriptor in file.DESCRIPTOR.message_types_by_name.items()
}
LIMITED = [
    (message, field, limit)
    for message, limits in FIELDS.items()
    for field, limit in limits.items()
    if not isinstance(limit, Anything)
]
NUMBERS = [case for case in LIMITED if isinstance(case[2], Number)]
WHOLE = {FieldDescriptor.TYPE_UINT32: 2**32 - 1, FieldDescriptor.TYPE_UINT64: 2**64 - 1}


def filled(name: str):
    """A message of this name that passes: what must be set is set."""
    message = MESSAGES[name]()
    for field, limit in FIELDS[name].items():
        descriptor = message.DESCRIPTOR.fields_by_name[field]
        if isinstance(limit, Inner) and limit.required:
            getattr(message, field).CopyFrom(filled(descriptor.message_type.name))
        elif isinstance(limit, Many) and limit.least:
            getattr(message, field).add()
        elif isinstance(limit, Bytes):
            setattr(message, field, bytes(limit.least))
        elif isinstance(limit, Choice) or (isinstance(limit, Number) and limit.low > 0):
            setattr(message, field, 1)
    return message


def too_much(descriptor: FieldDescriptor, limit) -> list:
    """Values outside a limit that the field's type can hold."""
    if isinstance(limit, Number):
        if descriptor.type in WHOLE:
            return [v for v in (0, WHOLE[descriptor.type]) if not limit.low <= v <= limit.high]
        return [math.nan, math.inf, -math.inf, 1e300, math.nextafter(limit.low, -math.inf)]
    if isinstance(limit, Text):
        return ["x" * (limit.longest + 1)]
    if isinstance(limit, Bytes):
        return [bytes(limit.most + 1), bytes(max(limit.least - 1, 0))]
    return [0]


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_has_a_limit_or_says_what_checks_it(name) -> None:
    """A field that is added without one fails here."""
    assert set(FIELDS[name]) == set(MESSAGES[name].DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_within_its_limits_passes(name) -> None:
    """With what must be set and nothing more."""
    check(filled(name))


@pytest.mark.parametrize(("name", "field", "limit"), LIMITED)
def test_a_value_outside_its_limit_is_refused_by_name(name, field, limit) -> None:
    """NaN, infinities, too long, too many, and not set where it must be."""
    descriptor = MESSAGES[name].DESCRIPTOR.fields_by_name[field]
    for wrong in _wrong(name, field, limit, descriptor):
        with pytest.raises(InputError) as caught:
            check(wrong)
        assert caught.value.facts["field"] == field
        assert type(caught.value) is limit.error


def _wrong(name, field, limit, descriptor) -> list:
    """Messages that hold the field outside its limit."""
    made = []
    if isinstance(limit, Inner):
        made = [filled(name)] if limit.required else []
        for message in made:
            message.ClearField(field)
    elif isinstance(limit, Many):
        made = _wrong_many(name, field, limit, descriptor)
    else:
        for value in too_much(descriptor, limit):
            made.append(filled(name))
            setattr(made[-1], field, value)
    return made


def _wrong_many(name, field, limit, descriptor) -> list:
    made = []
    if limit.least:
        made.append(filled(name))
        made[-1].ClearField(field)
    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        value = descriptor.message_type.fields_by_name["value"]
        for wrong in too_much(value, limit.each):
            made.append(filled(name))
            getattr(made[-1], field)["key"] = wrong
    elif descriptor.message_type is None:
        for wrong in too_much(descriptor, limit.each):
            made.append(filled(name))
            getattr(made[-1], field).append(wrong)
    if (
        limit.most <= 100
        and descriptor.message_type is not None
        and not descriptor.message_type.GetOptions().map_entry
    ):
        made.append(filled(name))
        inner = filled(descriptor.message_type.name)
        getattr(made[-1], field).extend([inner] * (limit.most + 1))
    return made


@pytest.mark.parametrize(("name", "field", "limit"), NUMBERS)
def test_the_ends_of_a_range_are_within_it(name, field, limit) -> None:
    """Of every number."""
    for value in (limit.low, limit.high):
        message = filled(name)
        whole = message.DESCRIPTOR.fields_by_name[field].type in WHOLE
        setattr(message, field, int(value) if whole else value)
        check(message)


def test_a_wrong_value_is_found_inside_another_message() -> None:
    """In an answer's list of jobs, as `ddib job list` reads it."""
    answer = translation_pb2.ListJobsResponse(jobs=[filled("Job"), filled("Job")])
    answer.jobs[1].finished = 1e300
    with pytest.raises(MessageInvalid, match=r"Job\.finished"):
        check(answer)


def test_no_evaluations_are_no_setting() -> None:
    """0 stood for the default and passed under limits that are below it."""
    header = filled("JobHeader")
    header.solver.evaluations = 0
    with pytest.raises(SettingsInvalid):
        check(header)


def test_unknown_fields_are_refused_or_passed_over_as_asked() -> None:
    """At any depth; a node of the own institution may be newer."""
    job = filled("Job")
    job.solver.MergeFromString(b"\xfa\x07\x03pix")
    with pytest.raises(UnknownFields):
        check(translation_pb2.GetJobResponse(job=job))
    check(translation_pb2.GetJobResponse(job=job), unknown=False)


def test_the_last_moment_is_one_that_a_calendar_has() -> None:
    """Beyond it `datetime` raises; raw values of pictures stay below figures."""
    from datetime import UTC, datetime

    assert datetime.fromtimestamp(LAST_MOMENT, UTC).year == 9999
    assert FIELDS["PictureFigures"]["slope"].high >= 2 * LARGEST_VALUE

"""A client against a source node whose answers are not what they should be: one error, no traceback, no result."""

import math

import pytest

from ddib_fed import Request
from ddib_fed.errors import ChunkCorrupt, InputError, MessageInvalid, UnknownFields
from ddib_fed.protocol.contract import LAST_MOMENT
from tests.client.scripted_source import TARGET, npy, points

STRANGE = b"\xfa\x07\x03new"


@pytest.fixture
def job_id(alice, tmp_path) -> str:
    path = tmp_path / "points.npy"
    path.write_bytes(npy(points()))
    return alice.submit([path], TARGET).job_id


@pytest.mark.parametrize("field", ["created", "expires"])
@pytest.mark.parametrize("value", [math.nan, -1.0, LAST_MOMENT + 1])
def test_a_time_that_no_calendar_has_is_refused(alice, north, job_id, field, value) -> None:
    """Where it comes in, naming the field and the node: nothing behind it has to know."""
    north.script.forge = lambda answer: setattr(answer.job, field, value)
    with pytest.raises(MessageInvalid) as caught:
        alice.get(job_id)
    assert caught.value.facts["field"] == field
    assert caught.value.hop == "source north.example"


def test_an_answer_about_another_job_is_refused(alice, north, job_id) -> None:
    """It would be shown under the name that was asked for."""
    north.script.forge = lambda answer: setattr(answer.job, "job_id", "another")
    with pytest.raises(MessageInvalid, match="another job"):
        alice.get(job_id)


def test_fields_that_nobody_knows_are_refused_from_the_own_node_too(alice, north, job_id) -> None:
    north.script.forge = lambda answer: answer.job.MergeFromString(STRANGE)
    with pytest.raises(UnknownFields) as caught:
        alice.get(job_id)
    assert "ddib --version" in caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [("soften_sigma", math.nan), ("wire_bytes", 2**63), ("input_sha256", "0" * 65), ("samples", 2**60)],
)
def test_a_record_that_cannot_be_is_refused(alice, north, job_id, field, value) -> None:
    """It would be written beside the result: NaN is no JSON."""

    def forge(messages):
        setattr(messages[0].result.provenance, field, value)
        return messages

    north.script.tamper = forge
    with pytest.raises(MessageInvalid) as caught:
        list(alice.fetch(job_id))
    assert caught.value.facts["field"] == field


def changed(change):
    """Changes the first message."""

    def tamper(messages):
        change(messages[0])
        return messages

    return tamper


@pytest.mark.parametrize(
    ("tamper", "error"),
    [
        (changed(lambda first: setattr(first, "data", first.data[:-1] + b"\0")), ChunkCorrupt),
        (changed(lambda first: setattr(first, "data", first.data[:-1])), MessageInvalid),
        (lambda messages: messages[:1], ChunkCorrupt),
        (lambda messages: messages[1:], MessageInvalid),
        (lambda messages: messages[:1] * 2, MessageInvalid),
        (lambda messages: [], ChunkCorrupt),
        (changed(lambda first: setattr(first.result.provenance, "job_id", "job-of-bob")), MessageInvalid),
        (changed(lambda first: first.result.ClearField("provenance")), MessageInvalid),
        (changed(lambda first: setattr(first.result, "item", 9)), MessageInvalid),
        (changed(lambda first: setattr(first.result.file, "size_bytes", 1 << 60)), InputError),
    ],
    ids=["digest", "torn", "no round trip", "round trip alone", "part twice", "nothing", "other job",
         "no provenance", "other item", "absurd size"],
)  # fmt: skip
def test_a_result_that_is_not_as_announced_is_no_result(alice, north, tamper, error):
    """Whatever the node sends: an item comes out whole and verified, or as an error with the hop."""
    job = alice.submit([npy(points())], TARGET, Request(cycle=True))
    north.script.tamper = tamper
    with pytest.raises(error) as caught:
        list(alice.fetch(job.job_id))
    assert caught.value.hop == "source north.example"

"""Results that are not what the node announced: the client takes none of them."""

from __future__ import annotations

import pytest

from ddib_fed.errors import ChunkCorrupt, InputError, MessageInvalid
from tests.client.scripted_source import TARGET, npy, points


def flip_a_byte(messages):
    changed = bytearray(messages[0].data)
    changed[-1] ^= 1
    messages[0].data = bytes(changed)
    return messages


def tear(messages):
    messages[0].data = messages[0].data[:-1]
    return messages


def say_other_job(messages):
    messages[0].result.provenance.job_id = "job-of-bob"
    return messages


def leave_provenance_out(messages):
    messages[0].result.ClearField("provenance")
    return messages


def number_differently(messages):
    messages[0].result.item = 9
    return messages


def announce_absurdly(messages):
    messages[0].result.file.size_bytes = 1 << 60
    return messages


@pytest.mark.parametrize(
    ("tamper", "error"),
    [
        (flip_a_byte, ChunkCorrupt),
        (tear, MessageInvalid),
        (lambda messages: messages[:1], ChunkCorrupt),
        (lambda messages: messages[1:], MessageInvalid),
        (lambda messages: messages[:1] * 2, MessageInvalid),
        (lambda messages: [], ChunkCorrupt),
        (say_other_job, MessageInvalid),
        (leave_provenance_out, MessageInvalid),
        (number_differently, MessageInvalid),
        (announce_absurdly, InputError),
    ],
    ids=["digest", "torn", "no round trip", "round trip alone", "part twice", "nothing", "other job",
         "no provenance", "other item", "absurd size"],
)  # fmt: skip
def test_a_result_that_is_not_as_announced_is_no_result(alice, north, tamper, error):
    """Whatever the node sends: an item comes out whole and verified, or as an error with the hop."""
    job = alice.submit([npy(points())], TARGET, cycle=True)
    north.script.tamper = tamper
    with pytest.raises(error) as caught:
        list(alice.fetch(job.job_id))
    assert caught.value.hop == "source north.example"

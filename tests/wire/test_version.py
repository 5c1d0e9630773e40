"""Which version two sides use, and what is unknown to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.errors import ContractMismatch, MessageInvalid, UnknownFields
from ddib_fed.v1 import common_pb2, decoding_pb2, translation_pb2
from ddib_fed.wire.version import (
    MAX_VERSIONS,
    SPOKEN,
    Version,
    highest_common,
    refuse_unknown_fields,
    require_spoken,
    versions_from_pb,
    versions_to_pb,
)

VERSIONS = st.lists(st.builds(Version, st.integers(1, 3), st.integers(0, 3)), max_size=6)


@given(VERSIONS, VERSIONS)
def test_the_highest_common_version_is_the_same_from_both_sides(ours, theirs):
    """Symmetric, common to both, and no common one is higher."""
    found = highest_common(ours, theirs)
    assert found == highest_common(theirs, ours)
    common = set(ours) & set(theirs)
    assert found == (max(common) if common else None)


def test_versions_survive_the_wire():
    """What is sent is what is read."""
    assert versions_from_pb(versions_to_pb(SPOKEN)) == SPOKEN


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [common_pb2.ProtocolVersion()],
        [common_pb2.ProtocolVersion(major=1, minor=2**31)],
        [common_pb2.ProtocolVersion(major=1)] * (MAX_VERSIONS + 1),
    ],
)
def test_no_absurd_or_too_many_versions_are_taken(messages):
    """A named error for each."""
    with pytest.raises(MessageInvalid):
        versions_from_pb(messages)


def test_a_version_that_is_not_spoken_names_both():
    """The caller learns what this release speaks."""
    with pytest.raises(ContractMismatch) as caught:
        require_spoken(common_pb2.ProtocolVersion(major=2))
    (difference,) = caught.value.differences
    assert (difference.field, difference.source, difference.target) == ("version", "2.0", "1.0")


def test_a_spoken_version_is_returned():
    """For the caller to use."""
    assert require_spoken(common_pb2.ProtocolVersion(major=1)) == Version(1, 0)


def with_unknown(message):
    """The same message with field 1000, which nobody knows."""
    return type(message).FromString(message.SerializeToString() + b"\xc2\x3e\x01x")


def test_an_unknown_field_is_refused():
    """Also where the message itself is otherwise empty."""
    with pytest.raises(UnknownFields) as caught:
        refuse_unknown_fields(with_unknown(common_pb2.Trailer()))
    assert caught.value.facts == {"message": "Trailer"}


@pytest.mark.parametrize(
    "message",
    [
        translation_pb2.SubmitJobRequest(trailer=with_unknown(common_pb2.Trailer())),
        decoding_pb2.DescribeDomainRequest(versions=[with_unknown(common_pb2.ProtocolVersion(major=1))]),
        decoding_pb2.DecodeRequest(
            latent=decoding_pb2.LatentHeader(tensor=with_unknown(common_pb2.TensorHeader()))
        ),
    ],
)
def test_an_unknown_field_inside_is_refused(message):
    """In a oneof, in a list, two levels down."""
    with pytest.raises(UnknownFields):
        refuse_unknown_fields(message)


@pytest.mark.parametrize(
    "message",
    [
        translation_pb2.FetchResultsRequest(job_id="a", items=[1, 2]),
        translation_pb2.Provenance(seconds={"encode": 1.0}),
        common_pb2.ErrorDetail(facts={"limit": "3"}, differences=[common_pb2.FieldDifference(field="x")]),
        decoding_pb2.DecodeRequest(chunk=common_pb2.Chunk(data=b"x")),
    ],
)
def test_known_fields_of_every_shape_pass(message):
    """Scalars, lists of scalars, maps, lists of messages."""
    refuse_unknown_fields(message)

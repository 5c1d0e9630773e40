"""Which version two sides use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.errors import MessageInvalid
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.version import (
    MAX_VERSIONS,
    SPOKEN,
    Version,
    highest_common,
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

"""A record that a node sends twice is written as the same bytes."""

from __future__ import annotations

from ddib_fed.protocol.job_messages import provenance_record
from ddib_fed.v1 import translation_pb2 as pb


def test_stages_are_in_one_order():
    """A protobuf map has another order in each process; a client that goes on in a new one compares bytes."""
    stages = [f"stage-{number:02}" for number in range(16)]
    sent = pb.Provenance(seconds=dict.fromkeys(reversed(stages), 1.0))
    assert list(provenance_record(pb.Provenance.FromString(sent.SerializeToString())).seconds) == stages

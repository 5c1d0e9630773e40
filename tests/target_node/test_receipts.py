"""What the target's audit log holds of a Decode call, and what it tells the source of itself."""

from __future__ import annotations

import json

import pytest

from ddib_fed.errors import ChunkCorrupt
from ddib_fed.security.audit import digest
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from tests import audit_rows
from tests.node.tiny_nodes import gaussian
from tests.target_node.sending import header, sent, torn

HEAD = common_pb2.AuditHead(lines=41, sha256=b"\x05" * 32)


def with_head(messages, head: common_pb2.AuditHead = HEAD) -> list[pb.DecodeRequest]:
    changed = list(messages)
    changed[0].latent.audit.CopyFrom(head)
    return changed


def lines(target) -> list[bytes]:
    return audit_rows.lines(target.config.paths.store)


def acts(target, act: str) -> list[dict]:
    return [record for line in lines(target) if (record := json.loads(line))["act"] == act]


def result_headers(answers) -> list[pb.DecodedHeader]:
    return [answer.result for answer in answers if answer.WhichOneof("message") == "result"]


def test_the_line_of_a_latent_has_the_end_of_the_sources_log(target, north) -> None:
    """Each latent its own, and the receipt the last; without one there is none."""
    contract = target.negotiate(north)
    later = common_pb2.AuditHead(lines=44, sha256=b"\x06" * 32)
    target.decode(
        north,
        header(contract),
        *with_head(sent(contract, gaussian(30), 0)),
        *with_head(sent(contract, gaussian(20), 1), later),
    )
    target.decode(north, header(contract, request_id="another"), *sent(contract, gaussian(30)))
    received = [(each.get("peer_lines"), each.get("peer_head")) for each in acts(target, "latent_received")]
    assert received == [(41, "05" * 32), (44, "06" * 32), (None, None)]
    first, second = acts(target, "receipt")
    assert (first["peer_lines"], first["peer_head"]) == (44, "06" * 32)
    assert "peer_head" not in second


def test_a_receipt_counts_the_bytes_of_both_directions(target, north) -> None:
    """Latents that came; files and latents of the round trip that went."""
    contract = target.negotiate(north)
    answers = target.decode(
        north,
        header(contract, round_trip=True),
        *sent(contract, gaussian(30), 0),
        *sent(contract, gaussian(20), 1),
    )
    went = sum(len(answer.data) for answer in answers)
    (receipt,) = acts(target, "receipt")
    assert (receipt["received_items"], receipt["received_bytes"]) == (2, 50 * 2 * 4)
    assert (receipt["sent_items"], receipt["sent_bytes"]) == (2, went)
    assert (receipt["peer"], receipt["contract"]) == (north.identity.uri, contract.digest.hex())


def test_a_call_that_breaks_off_has_its_receipt(target, north) -> None:
    """What came before it broke."""
    contract = target.negotiate(north)
    with pytest.raises(ChunkCorrupt):
        target.decode(north, header(contract), *sent(contract, gaussian(30), 0), torn(contract, 1))
    (receipt,) = acts(target, "receipt")
    assert receipt["received_bytes"] == 30 * 2 * 4


def test_an_answer_has_the_end_of_the_targets_log(target, north) -> None:
    """A line of the log at or behind that of the latent."""
    contract = target.negotiate(north)
    (answered,) = result_headers(target.decode(north, header(contract), *sent(contract, gaussian(30))))
    line = lines(target)[answered.audit.lines - 1]
    assert digest(line) == answered.audit.sha256.hex()
    (received,) = acts(target, "latent_received")
    assert answered.audit.lines - 1 >= received["n"]

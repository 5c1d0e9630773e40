"""What the source's audit log holds of its calls to a peer, and what it tells the peer of itself."""

from __future__ import annotations

import json

from ddib_fed.protocol.streams import file_header, stream
from ddib_fed.security.audit import digest
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from tests import audit_rows
from tests.node.tiny_nodes import npy
from tests.source_node.conftest import Source, wait_until
from tests.source_node.scripted_target import ScriptedTarget

THREE = [npy(seed=n) for n in range(3)]


def acts(source: Source, act: str) -> list[dict]:
    records = audit_rows.records(source.config.paths.store)
    return [record for record in records if record["act"] == act]


def telling(lines: int):
    """Honest, and with each answer the end of its own log, one line longer each time."""

    def behave(target: ScriptedTarget, header, items, context):
        for number, (item, latent) in enumerate(items):
            file = target.translation(latent)
            head = common_pb2.AuditHead(lines=lines + number, sha256=bytes([number]) * 32)
            named = pb.DecodedHeader(item=item, file=file_header(target.media_type, file), audit=head)
            yield from stream(pb.DecodeResponse, "result", named, file)
            target.answered += 1

    return behave


def test_the_receipt_has_the_bytes_and_the_end_of_the_peers_log(
    source: Source, target: ScriptedTarget
) -> None:
    """One for each call, with what came last."""
    target.decodes = [telling(70)]
    job = source.start().ended(source.submit(*THREE))
    wait_until(lambda: acts(source, "receipt"))
    (receipt,) = acts(source, "receipt")
    assert (receipt["job"], receipt["peer"]) == (job.job_id, "south.example")
    assert (receipt["sent_items"], receipt["sent_bytes"]) == (
        3,
        sum(latent.size_bytes for _, latent in target.latents),
    )
    files = sum(len(target.translation(latent)) for _, latent in target.latents)
    assert (receipt["received_items"], receipt["received_bytes"]) == (3, files)
    assert (receipt["peer_lines"], receipt["peer_head"]) == (72, "02" * 32)


def test_each_latent_goes_with_the_end_of_the_log_that_has_its_line(
    source: Source, target: ScriptedTarget
) -> None:
    """The peer can show that this log had the line of the latent that it got."""
    job = source.start().ended(source.submit(*THREE))
    assert source.states(job) == ["DECODED"] * 3
    lines = audit_rows.lines(source.config.paths.store)
    assert len(target.anchors) == 3
    for item, anchor in target.anchors.items():
        assert digest(lines[anchor.lines - 1]) == anchor.sha256.hex()
        before = [json.loads(line) for line in lines[: anchor.lines]]
        assert item in {record["item"] for record in before if record["act"] == "latent_sent"}

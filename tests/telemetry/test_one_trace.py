"""One translation is one trace, from the client through both nodes; it holds no names but institutions'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.protocol.messages import Settings
from ddib_fed.telemetry import tracing_to
from target_node import service
from tests.e2e.two_nodes import TwoNodes
from tests.node.tiny_nodes import gaussian, tiny_bundle
from tests.source_node.conftest import wait_until

NAME = "patient-Ada-Lovelace"
STEPS = {"submit", "job", "encode", "wire", "decode", "decode item", "deliver", "return"}


class Traced:
    """A node or client whose spans stay in memory."""

    def __init__(self, institution: str, what: str, **settings: object) -> None:
        self.exporter = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self.exporter)
        self.tracing = tracing_to(processor, institution=institution, what=what, **settings)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def trace_ids(self) -> set[int]:
        return {span.context.trace_id for span in self.spans}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """North's moons become south's checkerboards."""
    folder = tmp_path_factory.mktemp("traced")
    made = TwoNodes(folder, tiny_bundle("north"), tiny_bundle("south", domain="checkerboards"))
    yield made
    made.close()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The metadata of ours that came with each Decode call."""
    found: list[dict[str, str]] = []
    real = service.trace_of

    def looking(metadata, *rest):
        found.append({key: value for key, value in metadata if key.startswith(("trace", "ddib", "baggage"))})
        return real(metadata, *rest)

    monkeypatch.setattr(service, "trace_of", looking)
    return found


def translated(
    nodes: TwoNodes, tmp_path: Path, north: tuple[str, ...], south: tuple[str, ...], *, cycle: bool = True
) -> tuple[Traced, Traced, Traced]:
    """The spans of client, source and target; the nodes share traces with those institutions."""
    client = Traced("north.example", "client")
    source = Traced("north.example", "source", peers=north)
    target = Traced("south.example", "target", peers=south)
    nodes.source.node.tracing, nodes.target.node.tracing = source.tracing, target.tracing
    np.save(tmp_path / f"{NAME}.npy", gaussian(40))
    profile = Profile.load(nodes.profile())
    with Client(profile, tracing=client.tracing) as opened:
        opened.translate(
            [tmp_path / f"{NAME}.npy"], "south.example/checkerboards", Settings(evaluations=8), cycle=cycle
        )
    wait_until(lambda: source.named("job") and target.named("decode"), 10.0)
    return client, source, target


def test_client_source_and_target_share_one_trace(
    nodes: TwoNodes, tmp_path: Path, seen: list[dict[str, str]]
) -> None:
    """Each step is a part of the one before it; across the border goes one metadata key."""
    client, source, target = translated(nodes, tmp_path, ("south.example",), ("north.example",))
    (trace,) = client.trace_ids() | source.trace_ids() | target.trace_ids()
    by_id = {span.context.span_id: span for party in (client, source, target) for span in party.spans}
    parents = {(span.name, by_id[span.parent.span_id].name if span.parent else "") for span in by_id.values()}
    assert parents >= {
        ("submit", ""), ("submit", "submit"), ("job", "submit"), ("encode", "job"), ("wire", "job"),
        ("decode", "wire"), ("decode item", "decode"), ("return", "job"), ("deliver", "submit"), ("deliver", "deliver"),
    }  # fmt: skip
    assert {span.name for span in by_id.values()} == STEPS
    (wire,), (decode,) = source.named("wire"), target.named("decode")
    assert decode.parent.span_id == wire.context.span_id
    ((key, value),) = seen[0].items()
    assert (key, value[:-2], len(seen)) == (
        "traceparent", f"00-{trace:032x}-{wire.context.span_id:016x}-", 1,
    )  # fmt: skip
    assert wire.attributes["ddib.items_received"] == 1
    assert wire.attributes["ddib.bytes_sent"] == 40 * 2 * 4


def test_spans_name_nobody_but_institutions(nodes: TwoNodes, tmp_path: Path) -> None:
    """Of all three, everything that an exporter gets: no file, folder, person, node, host or process."""
    parties = translated(nodes, tmp_path, ("south.example",), ("north.example",))
    text = " ".join(span.to_json() for party in parties for span in party.spans)
    for word in (NAME, str(tmp_path), "alice", "spiffe", "node-1", "host", "process", ".npy"):
        assert word not in text, word
    values = [value for party in parties for span in party.spans for value in span.attributes.values()]
    assert {value for value in values if isinstance(value, str) and "." in value} == {
        "north.example", "south.example",
    }  # fmt: skip
    assert not [event for party in parties for span in party.spans for event in span.events]


@pytest.mark.parametrize(
    ("north", "south"),
    [((), ("north.example",)), (("south.example",), ())],
)
def test_no_trace_id_crosses_where_one_side_does_not_share(
    north: tuple[str, ...],
    south: tuple[str, ...],
    nodes: TwoNodes,
    tmp_path: Path,
    seen: list[dict[str, str]],
) -> None:
    client, source, target = translated(nodes, tmp_path, north, south, cycle=False)
    assert client.trace_ids() == source.trace_ids()
    assert not source.trace_ids() & target.trace_ids()
    assert seen == [{}]
    assert target.named("decode")[0].parent is None

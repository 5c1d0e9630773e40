"""Telemetry is off by default; one translation is one trace through client and both nodes, and names no one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from ddib_fed import Request, telemetry
from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.protocol.calls import DETAIL_KEY, MAX_DETAIL_BYTES, TIME_KEY, time_entry
from ddib_fed.protocol.contract import LAST_MOMENT
from ddib_fed.record import Settings
from target_node import service
from tests.e2e.harness import wait_until
from tests.e2e.in_process import InProcessNodes
from tests.node.tiny_nodes import gaussian, tiny_bundle
from tests.protocol.surface import METADATA

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
ON = telemetry.Tracing(shared=["north.example"])


def opened(endpoint: str | None, what: str = "target") -> telemetry.Tracing:
    return telemetry.open_tracing(
        telemetry.NodeTelemetry(endpoint=endpoint), institution="south.example", what=what
    )


def test_a_collector_that_is_away_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A span costs a moment, the end waits some seconds at most, and the log says it."""
    tracing = opened("http://127.0.0.1:1")
    with tracing.span("decode"):
        pass
    tracing.close()
    assert "export" in caplog.text


@pytest.mark.parametrize(
    "endpoint",
    ["http://collector.north.example:4318", "https://a:b@collector:4318", "https://collector:4318?key=1"],
)
def test_an_endpoint_that_is_not_allowed(endpoint: str) -> None:
    with pytest.raises(ValidationError, match=r"unencrypted|not the URL|login"):
        telemetry.TelemetrySettings(endpoint=endpoint)


def test_a_trace_is_taken_from_those_with_whom_it_is_shared() -> None:
    sent = [(telemetry.TRACE_KEY, GOOD), ("tracestate", "a=b"), ("baggage", "a=b")]
    found = telemetry.trace_of(sent, ON, "north.example")
    assert telemetry.trace_entries(found) == {"metadata": ((telemetry.TRACE_KEY, GOOD),)}
    assert telemetry.trace_of(sent, ON, "west.example") is None
    assert telemetry.trace_of(sent, telemetry.OFF, "north.example") is None
    assert telemetry.trace_of([*sent, *sent], ON, "north.example") is None
    assert telemetry.trace_of([(telemetry.TRACE_KEY, GOOD.encode())], ON, "north.example") is None
    assert telemetry.trace_of(None, ON, "north.example") is None


def test_the_list_of_metadata_is_what_the_code_sends() -> None:
    assert set(METADATA) == {DETAIL_KEY, TIME_KEY, telemetry.TRACE_KEY, telemetry.TAKES_KEY}
    assert len(time_entry(LAST_MOMENT)[1]) <= METADATA[TIME_KEY].most
    assert METADATA[telemetry.TRACE_KEY].most == telemetry.TRACEPARENT_CHARACTERS
    assert METADATA[DETAIL_KEY].most >= MAX_DETAIL_BYTES


NAME = "patient-Ada-Lovelace"
STEPS = {"submit", "job", "encode", "wire", "decode", "decode item", "deliver", "return"}


class Traced:
    """A node or client whose spans stay in memory."""

    def __init__(self, institution: str, what: str, **settings: object) -> None:
        self.exporter = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self.exporter)
        self.tracing = telemetry.tracing_to(processor, institution=institution, what=what, **settings)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def trace_ids(self) -> set[int]:
        return {span.context.trace_id for span in self.spans}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessNodes]:
    """North's moons become south's checkerboards."""
    folder = tmp_path_factory.mktemp("traced")
    made = InProcessNodes(folder, tiny_bundle("north"), tiny_bundle("south", domain="checkerboards"))
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
    nodes: InProcessNodes,
    tmp_path: Path,
    north: tuple[str, ...],
    south: tuple[str, ...],
    *,
    cycle: bool = True,
) -> tuple[Traced, Traced, Traced]:
    """The spans of client, source and target; the nodes share traces with those institutions."""
    client = Traced("north.example", "client")
    source = Traced("north.example", "source", peers=north)
    target = Traced("south.example", "target", peers=south)
    nodes.source.node.tracing, nodes.target.node.tracing = source.tracing, target.tracing
    np.save(tmp_path / f"{NAME}.npy", gaussian(40))
    profile = Profile.load(nodes.profile())
    with Client(profile, tracing=client.tracing) as opened:
        asked = Request(Settings(evaluations=8), cycle=cycle)
        assert [*opened.translate([tmp_path / f"{NAME}.npy"], "south.example/checkerboards", asked)]
    wait_until(lambda: source.named("job") and target.named("decode"), 60.0)
    return client, source, target


def test_client_source_and_target_share_one_trace(nodes, tmp_path, seen):
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


def test_spans_name_nobody_but_institutions(nodes: InProcessNodes, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("north", "south"), [((), ("north.example",)), (("south.example",), ())])
def test_no_trace_id_crosses_where_one_side_does_not_share(north, south, nodes, tmp_path, seen):
    client, source, target = translated(nodes, tmp_path, north, south, cycle=False)
    assert client.trace_ids() == source.trace_ids()
    assert not source.trace_ids() & target.trace_ids()
    assert seen == [{}]
    assert target.named("decode")[0].parent is None

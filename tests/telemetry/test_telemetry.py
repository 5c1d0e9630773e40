"""Telemetry is off by default, goes nowhere unencrypted but on this machine, and believes one form of another side."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ddib_fed.protocol.contract import LAST_MOMENT
from ddib_fed.protocol.details import DETAIL_KEY, MAX_DETAIL_BYTES, TIME_KEY, time_entry
from ddib_fed.telemetry import (
    OFF,
    TAKES_KEY,
    TRACE_KEY,
    TRACEPARENT_CHARACTERS,
    NodeTelemetry,
    TelemetrySettings,
    Tracing,
    is_taken,
    open_tracing,
    parse_traceparent,
    takes_entries,
    trace_entries,
    trace_of,
)
from tests.protocol.surface import METADATA

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
ON = Tracing(shared=["north.example"])


def opened(endpoint: str | None, what: str = "target") -> Tracing:
    return open_tracing(NodeTelemetry(endpoint=endpoint), institution="south.example", what=what)


def test_a_collector_that_is_away_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A span costs a moment, the end waits some seconds at most, and the log says it."""
    tracing = opened("http://127.0.0.1:1")
    with tracing.span("decode"):
        pass
    tracing.close()
    assert "127.0.0.1" in caplog.text or "Connection" in caplog.text


def test_it_is_off_by_default() -> None:
    assert opened(None) is OFF
    with OFF.span("anything", a=1) as span:
        assert trace_entries(span) == {}
        OFF.remember("job", span)
    assert OFF.recall("job") is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://collector.north.example:4318",
        "https://a:b@collector:4318",
        "https://collector:4318?key=1",
    ],
)
def test_an_endpoint_that_is_not_allowed(endpoint: str) -> None:
    with pytest.raises(ValidationError, match=r"unencrypted|not the URL|login"):
        TelemetrySettings(endpoint=endpoint)


@pytest.mark.parametrize("flags", ["00", "fe"])
def test_a_traceparent_is_read_and_written_again(flags: str) -> None:
    text = f"{GOOD[:-2]}{flags}"
    assert len(text) == TRACEPARENT_CHARACTERS
    assert trace_entries(parse_traceparent(text)) == {"metadata": ((TRACE_KEY, text),)}


BAD = [
    "",
    GOOD + "\n",
    f"01-{TRACE}-{SPAN}-01",
    f"00-{TRACE[:-1]}\u0661-{SPAN}-01",
    "00-" + "a" * 10_000,
]


@pytest.mark.parametrize("text", BAD)
def test_everything_else_says_nothing(text: str) -> None:
    assert parse_traceparent(text) is None
    assert trace_of([(TRACE_KEY, text)], ON, "north.example") is None


def test_a_trace_is_taken_from_those_with_whom_it_is_shared() -> None:
    sent = [(TRACE_KEY, GOOD), ("tracestate", "a=b"), ("baggage", "a=b")]
    found = trace_of(sent, ON, "north.example")
    assert trace_entries(found) == {"metadata": ((TRACE_KEY, GOOD),)}
    assert trace_of(sent, ON, "west.example") is None
    assert trace_of(sent, OFF, "north.example") is None
    assert trace_of([*sent, *sent], ON, "north.example") is None
    assert trace_of([(TRACE_KEY, GOOD.encode())], ON, "north.example") is None
    assert trace_of(None, ON, "north.example") is None


def test_that_traces_are_taken_is_said_to_those_alone() -> None:
    assert is_taken(takes_entries(ON, "north.example"))
    assert takes_entries(ON, "west.example") == ()
    assert takes_entries(OFF, "north.example") == ()
    for said in (None, (), [(TAKES_KEY, "yes")], [(TAKES_KEY, b"1")], [("other", "1")]):
        assert not is_taken(said)


def test_the_list_of_metadata_is_what_the_code_sends() -> None:
    assert set(METADATA) == {DETAIL_KEY, TIME_KEY, TRACE_KEY, TAKES_KEY}
    assert len(time_entry(LAST_MOMENT)[1]) <= METADATA[TIME_KEY].most
    assert METADATA[TRACE_KEY].most == TRACEPARENT_CHARACTERS
    assert METADATA[DETAIL_KEY].most >= MAX_DETAIL_BYTES

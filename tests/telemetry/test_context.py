"""Of what another side says of a trace, one form is believed, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddib_fed.rpc.clocks import TIME_KEY, time_entry
from ddib_fed.rpc.error_details import DETAIL_KEY, MAX_DETAIL_BYTES
from ddib_fed.rpc.traces import TAKES_KEY, TRACE_KEY, is_taken, takes_entries, trace_entries, trace_of
from ddib_fed.telemetry.context import TRACEPARENT_CHARACTERS, TraceContext, parse_traceparent
from ddib_fed.telemetry.tracing import OFF, Remembered, Tracing
from ddib_fed.wire.contracts.calibration import LAST_MOMENT
from tests.wire.surface import METADATA

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


class On(Tracing):
    """Shares traces with north."""

    def shares_with(self, institution: str) -> bool:
        return institution == "north.example"


def test_a_traceparent_is_read_and_written_again() -> None:
    """The example of the standard; of the flags one is known."""
    found = parse_traceparent(GOOD)
    assert found == TraceContext(int(TRACE, 16), int(SPAN, 16), sampled=True)
    assert found.traceparent == GOOD
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-fe").traceparent == f"00-{TRACE}-{SPAN}-00"
    assert len(TraceContext(1, 1, sampled=False).traceparent) == TRACEPARENT_CHARACTERS


BAD = [
    "",
    GOOD.upper(),
    GOOD[:-1],
    GOOD + "-00",
    GOOD + "\n",
    f"01-{TRACE}-{SPAN}-01",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE[:-1]}\u0661-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-0g",
    "00-" + "a" * 10_000,
    f"00_{TRACE}_{SPAN}_01",
]


@pytest.mark.parametrize("text", BAD)
def test_everything_else_says_nothing(text: str) -> None:
    """Also what a later version of the standard may allow."""
    assert parse_traceparent(text) is None
    assert trace_of([(TRACE_KEY, text)], On(), "north.example") is None


def test_a_trace_is_taken_from_those_with_whom_it_is_shared() -> None:
    """One value, from the authenticated institution; nothing while it is off."""
    sent = trace_entries(parse_traceparent(GOOD))["metadata"]
    assert trace_of(sent, On(), "north.example") == parse_traceparent(GOOD)
    assert trace_of(sent, On(), "west.example") is None
    assert trace_of(sent, OFF, "north.example") is None
    assert trace_of([*sent, *sent], On(), "north.example") is None
    assert trace_of([(TRACE_KEY, GOOD.encode())], On(), "north.example") is None
    assert trace_of(None, On(), "north.example") is None
    assert trace_entries(None) == {}


def test_that_traces_are_taken_is_said_to_those_alone() -> None:
    """And believed in one form."""
    assert is_taken(takes_entries(On(), "north.example"))
    assert takes_entries(On(), "west.example") == ()
    assert takes_entries(OFF, "north.example") == ()
    for said in (None, (), [(TAKES_KEY, "yes")], [(TAKES_KEY, b"1")], [("other", "1")]):
        assert not is_taken(said)


def test_the_newest_places_are_remembered() -> None:
    """Memory does not grow with the jobs."""
    places = Remembered(most=3)
    for number in range(1, 6):
        places.put(str(number), TraceContext(number, 1, sampled=True))
    assert [places.get(str(number)) is None for number in range(1, 6)] == [True, True, False, False, False]


def test_the_list_of_metadata_is_what_the_code_sends() -> None:
    """Keys and bounds; it is part of tests/data/surface.txt."""
    assert set(METADATA) == {DETAIL_KEY, TIME_KEY, TRACE_KEY, TAKES_KEY}
    assert len(time_entry(LAST_MOMENT)[1]) <= METADATA[TIME_KEY].most
    assert METADATA[TRACE_KEY].most == TRACEPARENT_CHARACTERS
    assert METADATA[DETAIL_KEY].most >= MAX_DETAIL_BYTES


def test_the_protocols_page_has_the_same_list() -> None:
    """Each key once, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    table = page.partition("### Metadata")[2].partition("\n\n`ddib-trace`")[0]
    assert re.findall(r"(?m)^\| `([a-z-]+)` \|", table) == list(METADATA)

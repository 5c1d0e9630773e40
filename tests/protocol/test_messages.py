"""Domain types become messages and come back, by the names and types of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import PublicLevels
from ddib_fed.errors import SettingsInvalid
from ddib_fed.node.role import settings_message, solver_settings
from ddib_fed.protocol.messages import Settings, from_message, provenance_record, to_message
from ddib_fed.v1 import translation_pb2


class State(StrEnum):
    QUEUED = "waiting"
    FINISHED = "over"


@dataclass(frozen=True)
class Piece:
    index: int
    size_bytes: int
    sha256: bytes
    error: Fault | None = None


@dataclass(frozen=True)
class Fault:
    reason: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Work:
    job_id: str
    state: State
    item_count: int
    created: float
    items: tuple[Piece, ...]


@dataclass(frozen=True)
class Digests:
    contract_sha256: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Shaped:
    sample_kind: str
    sample_shape: tuple[int, ...]
    class_names: tuple[str, ...]


TEXT = st.text(max_size=8)
NUMBERS = st.floats(allow_nan=False)
FAULTS = st.builds(Fault, reason=TEXT, facts=st.dictionaries(TEXT, TEXT, max_size=3))
PIECES = st.builds(
    Piece,
    index=st.integers(0, 2**32 - 1),
    size_bytes=st.integers(0, 2**64 - 1),
    sha256=st.binary(max_size=8),
    error=st.none() | FAULTS,
)
VALUES = {
    translation_pb2.Job: st.builds(
        Work,
        job_id=TEXT,
        state=st.sampled_from(State),
        item_count=st.integers(0, 99),
        created=NUMBERS,
        items=st.lists(PIECES, max_size=3).map(tuple),
    ),
    translation_pb2.Provenance: st.builds(
        Digests,
        contract_sha256=st.binary(max_size=40).map(bytes.hex),
        seconds=st.dictionaries(TEXT, NUMBERS, max_size=3),
    ),
    translation_pb2.Domain: st.builds(
        Shaped,
        sample_kind=TEXT,
        sample_shape=st.lists(st.integers(0, 2**64 - 1), max_size=3).map(tuple),
        class_names=st.lists(TEXT, max_size=3).map(tuple),
    ),
}


@pytest.mark.parametrize("message", VALUES, ids=lambda kind: kind.DESCRIPTOR.name)
@given(data=st.data())
def test_every_value_survives_the_wire(message, data):
    """Texts, numbers, digests, enums, nested and optional ones, lists and maps; of all kinds of domain types."""
    value = data.draw(VALUES[message])
    sent = to_message(value, message).SerializeToString()
    assert from_message(message.FromString(sent), type(value)) == value


@dataclass(frozen=True)
class Own:
    job_id: str
    owner: str = "me"


def test_a_field_that_the_message_lacks_is_not_dropped_in_silence():
    """It is named as local, or given."""
    with pytest.raises(TypeError, match="owner"):
        to_message(Own("a"), translation_pb2.Job)
    with pytest.raises(TypeError, match="owner"):
        from_message(translation_pb2.Job(job_id="a"), Own)
    sent = to_message(Own("a", "you"), translation_pb2.Job, local=("owner",), item_count=3)
    assert (sent.job_id, sent.item_count) == ("a", 3)
    assert from_message(sent, Own, local=("owner",)) == Own("a")
    assert from_message(sent, Own, owner="they") == Own("a", "they")


def test_stages_are_in_one_order():
    """A protobuf map has another order in each process; a client that goes on in a new one compares bytes."""
    stages = [f"stage-{number:02}" for number in range(16)]
    sent = translation_pb2.Provenance(seconds=dict.fromkeys(reversed(stages), 1.0))
    assert (
        list(provenance_record(translation_pb2.Provenance.FromString(sent.SerializeToString())).seconds)
        == stages
    )


IN_ONE_PROCESS = [
    SolverSettings("ddim", eta=0.5),
    SolverSettings("ddim", grid="ddib", ancestral=True),
    SolverSettings("ddim", grid="ddib", levels=PublicLevels("linear", 1000, "ddim50")),
]


@pytest.mark.parametrize("settings", IN_ONE_PROCESS, ids=str)
def test_what_the_wire_does_not_carry_is_not_dropped_in_silence(settings):
    """A message of the other five would ask the peer for something else."""
    with pytest.raises(SettingsInvalid, match="do not travel"):
        settings_message(settings)


def test_all_settings_cross_the_wire():
    for settings in (SolverSettings("ddim", 1, 50, "ddib"), SolverSettings(encoder="mixed")):
        assert solver_settings(settings_message(settings)) == settings


def test_a_quality_is_one_of_three_settings():
    """Depth and encoder stay as they were asked; what the quality chooses may not be set beside it."""
    asked = Settings(depth=0.5)
    assert asked.of_quality(None) is asked
    assert asked.of_quality("draft") == Settings(evaluations=12, grid="learned", depth=0.5)
    assert asked.of_quality("standard") == asked
    assert asked.of_quality("exact").evaluations == 96
    with pytest.raises(SettingsInvalid, match="no quality 'best'"):
        asked.of_quality("best")
    with pytest.raises(SettingsInvalid, match="chooses grid itself") as refused:
        Settings(grid="integer").of_quality("exact")
    assert refused.value.hint == "leave --grid or --quality out"

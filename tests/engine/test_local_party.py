"""The way of an item through a party is the same whether its executor works beside its caller or on its thread."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.executors import CallingThread
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.engine.party import Control, Decoded, Encoded, Failed, Leg, ToDecode, ToEncode
from ddib_fed.errors import Cancelled, Draining, NotFinite, ShapeMismatch
from ddib_fed.latent import Latent
from tests.node.tiny_nodes import gaussian, tiny_bundle
from tests.runs.tiny_models import pictures, tiny

SETTINGS = SolverSettings(evaluations=8)


@pytest.fixture
def beside():
    party = open_party(tiny_bundle())
    made = LocalParty(party.model, Batcher(party.model, rows=8))
    yield made
    made.close()


def alone(party: LocalParty) -> LocalParty:
    return LocalParty(party.model, CallingThread(party.model, 8))


def points(*sizes: int) -> list[ToEncode]:
    return [ToEncode(number, gaussian(size, number)) for number, size in enumerate(sizes)]


def test_items_of_any_size_come_in_order_and_as_on_the_calling_thread(beside) -> None:
    """Among them one that is refused before, and one that is larger than a call."""
    items = points(3, 1, 30, 2, 5)
    items[3] = replace(items[3], samples=np.zeros((2, 3), np.float32))
    found = [list(party.encode_each(items, Leg(SETTINGS))) for party in (beside, alone(beside))]
    for one, other in zip(*found, strict=True):
        assert one.number == other.number
        if one.number == 3:
            assert isinstance(one, Failed)
            assert isinstance(one.error, ShapeMismatch)
        else:
            np.testing.assert_allclose(one.latent.data, other.latent.data, atol=1e-5)
    assert [each.number for each in found[0]] == list(range(5))


@pytest.mark.slow
def test_round_trips_follow_the_decoding_of_each_item() -> None:
    """Of pictures: samples and latents of each are those of the calling thread."""
    bundle = tiny("south", seed=2)
    parties = [open_party(bundle, together=2)]
    model = parties[0].model
    parties.append(LocalParty(model, Batcher(model, rows=2)))
    items = [ToDecode(n, Latent.from_array(x[None])) for n, x in enumerate(noise(5))]
    found = [list(party.decode_each(items, Leg(SETTINGS, round_trip=True))) for party in parties]
    parties[1].close()
    for one, other in zip(*found, strict=True):
        assert isinstance(one, Decoded)
        assert isinstance(other, Decoded)
        np.testing.assert_allclose(one.samples, other.samples, atol=1e-4)
        np.testing.assert_allclose(one.again.latent.data, other.again.latent.data, atol=1e-3)
        assert one.again.number == other.again.number == one.number


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(pictures(count).shape).astype(np.float32)


def test_what_is_not_finite_fails_in_its_round_trip_alone() -> None:
    """The others of its call go on."""
    party = open_party(tiny_bundle(answer=3e38))
    beside = LocalParty(party.model, Batcher(party.model, rows=100))
    latents = [ToDecode(n, Latent.from_array(gaussian(20, n))) for n in range(3)]
    settings = SolverSettings(solver="rk4", evaluations=40)
    for each in (beside, party):
        outcomes = list(each.decode_each(latents, Leg(settings, round_trip=True)))
        assert [type(outcome.error) for outcome in outcomes] == [NotFinite] * 3
    beside.close()


def test_known_latents_take_their_place_in_the_order(beside) -> None:
    """And are not computed again."""
    items = points(3, 1, 2, 5)
    before = beside.encode(items[1], Leg(SETTINGS))
    calls = beside.executor.counters["rows"]
    known = {1: before, 3: replace(before, number=3)}
    found = list(beside.encode_each(items, Leg(SETTINGS), known=lambda item: known.get(item.number)))
    assert [each.number for each in found] == [0, 1, 2, 3]
    assert found[1] is before
    assert found[3] is known[3]
    assert beside.executor.counters["rows"] - calls == 8 * (3 + 2)


def test_progress_of_a_large_item_counts_all_its_ranges(beside) -> None:
    seen: list[tuple[int, str, int, int]] = []
    beside.encode(points(20)[0], Leg(SETTINGS, on_step=lambda *at: seen.append(at)))
    assert seen == [(0, "encode", step, 24) for step in range(1, 25)]


def test_cancelling_ends_a_stream_at_the_next_step(beside) -> None:
    """With the reason that was given, whatever is still in flight."""
    control = Control()

    def stop(number: int, stage: str, done: int, of: int) -> None:
        if number == 1:
            control.cancel(Draining())

    items = (item for item in points(*[8] * 50))
    leg = Leg(SolverSettings(evaluations=500), control=control, on_step=stop)
    with pytest.raises(Draining):
        list(beside.encode_each(items, leg))
    control = Control()
    control.cancel()
    with pytest.raises(Cancelled):
        list(beside.encode_each(points(1), Leg(SETTINGS, control=control)))


def test_a_closed_engine_ends_a_stream(beside) -> None:
    beside.close()
    with pytest.raises(Draining):
        list(beside.encode_each(points(1), Leg(SETTINGS)))


def test_seconds_of_items_that_share_the_engine_add_up_to_less_than_the_wall(beside) -> None:
    started = time.perf_counter()
    outcomes = list(beside.encode_each(points(*[4] * 12), Leg(SETTINGS)))
    wall = time.perf_counter() - started
    assert all(isinstance(each, Encoded) and each.seconds > 0 for each in outcomes)
    assert sum(each.seconds for each in outcomes) <= wall

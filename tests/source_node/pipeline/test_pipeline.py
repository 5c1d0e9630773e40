"""One job against a target that misbehaves: each item ends once, with a reason, whatever the peer does."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from ddib_fed.data.points import to_npy
from ddib_fed.errors import LatentNotGaussian
from ddib_fed.latent import Latent
from ddib_fed.protocol.details import refused_facts
from ddib_fed.protocol.messages import ItemState
from source_node.spool import Spool, SpoolPart
from tests.node.tiny_nodes import gaussian, npy, tiny_engine
from tests.source_node.conftest import LARGE_LIMITS, SOLVER, wait_until
from tests.source_node.scripted_target import hang, refuse

THREE = [npy(seed=n) for n in range(3)]


def test_an_honest_peer_translates_every_item(source, target) -> None:
    """Translation, cycle and record of each item are on the disk, and the cycle of an exact model closes."""
    job = source.start().ended(source.submit(*THREE, cycle=True))
    assert job.state == "FINISHED"
    assert source.states(job) == ["DECODED"] * 3
    for item in job.items:
        assert item.provenance["cycle"]["max"] < 1e-4
        assert item.provenance["wire_bytes"] > 3 * 40 * 2 * 4
        assert {SpoolPart.TRANSLATION, SpoolPart.RETURNED} <= {
            part for part, _ in source.store.parts(job.job_id, item.index)
        }


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_item_refused_in_the_middle_of_a_stream_fails_alone(source, target, number) -> None:
    """What was encoded ahead of the refusal is sent again as it is, and its result arrives."""
    target.decodes = [refuse(number, LatentNotGaussian(facts={"item": number}))]
    job = source.start().ended(source.submit(*THREE))
    expected = ["DECODED"] * 3
    expected[number] = "FAILED"
    assert (str(job.state), source.states(job)) == ("FINISHED", expected)
    assert job.items[number].error.reason == "LATENT_NOT_GAUSSIAN"
    for again in target.seen[1:]:
        assert all(target.seen[0].get(item, digest) == digest for item, digest in again.items())


def test_what_a_peer_had_taken_behind_a_refusal_is_not_sent_again(source, target) -> None:
    """It answers that first, and names all that it refused: one call for five items, two of them refused."""

    def behave(target, header, items, context):
        refused = {1: "LATENT_NOT_GAUSSIAN", 3: "INPUT_INVALID"}
        for item, latent in itertools.islice(items, 5):
            if item not in refused:
                yield from target.answer(header, item, latent)
        raise LatentNotGaussian(facts={"item": 1, **refused_facts(refused)})

    target.decodes = [behave]
    job = source.start().ended(source.submit(*[npy(seed=n) for n in range(5)]))
    assert (str(job.state), len(target.seen)) == ("FINISHED", 1)
    assert source.states(job) == ["DECODED", "FAILED", "DECODED", "FAILED", "DECODED"]
    first, second = job.items[1].error, job.items[3].error
    assert (first.reason, second.reason) == ("LATENT_NOT_GAUSSIAN", "INPUT_INVALID")
    assert (first.facts, second.facts) == ({"item": "1"}, {"item": "3"})


def test_a_peer_that_ends_early_ends_the_job_with_a_reason(source, target) -> None:
    """In order, but without the last item: refused; what came is kept, and the job does not run for ever."""

    def two_of_three(target, header, items, context):
        for item, latent in items:
            if item < 2:
                yield from target.answer(header, item, latent)

    target.decodes = [two_of_three]
    job = source.start().ended(source.submit(*THREE))
    assert (str(job.state), job.error.reason) == ("FAILED", "PEER_FAULT")
    assert source.states(job) == ["DECODED", "DECODED", "FAILED"]


def test_a_stored_latent_is_sent_again_as_it_is(source, target, tmp_path, institutions, engine) -> None:
    """After a stop in the middle, the same model sends the very bytes, without another network call."""
    target.decodes = [hang]
    job_id = source.start().submit()
    wait_until(lambda: source.store.get(job_id).items[0].state == ItemState.ENCODED)
    assert target.asked.wait(10)
    stored = source.store.read_part(job_id, 0, SpoolPart.ENCODED)
    source.stop()
    source.open(engine)
    calls = engine.counters["calls"]
    assert source.start().ended(job_id).state == "FINISHED"
    assert engine.counters["calls"] == calls
    assert set(target.seen[-1].values()) == {Latent.from_bytes(stored, (2,)).sha256}


def test_a_latent_of_a_model_that_was_replaced_is_made_again(source, target) -> None:
    """The new model encodes the item anew, and the record names the new model alone."""
    target.decodes = [hang]
    job_id = source.start().submit()
    wait_until(lambda: source.store.get(job_id).items[0].state == ItemState.ENCODED)
    assert target.asked.wait(10)
    source.stop()
    replaced = tiny_engine("another")
    source.open(replaced)
    calls = replaced.counters["calls"]
    job = source.start().ended(job_id)
    assert (str(job.state), source.states(job)) == ("FINISHED", ["DECODED"])
    assert replaced.counters["calls"] == calls + 8
    assert job.items[0].provenance["source_model_sha256"] == replaced.model.bundle.digest
    source.runner.close()
    replaced.close()


def test_a_stored_latent_that_the_disk_lost_is_made_again(source, target) -> None:
    """A flipped byte in the spool costs an encoding, not the item."""
    target.decodes = [hang]
    job_id = source.start().submit()
    wait_until(lambda: source.store.get(job_id).items[0].state == ItemState.ENCODED)
    assert target.asked.wait(10)
    source.stop()
    path = next(source.config.paths.spool.rglob("0.encoded-*"))
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    source.open(source.node.running_engine)
    assert source.start().ended(job_id).state == "FINISHED"


def test_an_item_that_this_node_cannot_encode_fails_alone(source, target) -> None:
    """The peer never hears of it."""
    odd = to_npy(gaussian(400) * 90)
    job = source.start().ended(source.submit(THREE[0], odd, THREE[2]))
    assert source.states(job) == ["DECODED", "FAILED", "DECODED"]
    assert job.items[1].error.reason == "LATENT_NOT_GAUSSIAN"
    assert sorted(target.seen[0]) == [0, 2]


LARGE = [npy(100_000)] * 3
"""Items of 49 ranges of 16 kB each."""


def _rest(number) -> int:
    """What `number` is once it has stopped growing."""
    pause, last, since = threading.Event(), number(), time.monotonic()
    while time.monotonic() - since < 0.4:
        pause.wait(0.02)
        if number() != last:
            last, since = number(), time.monotonic()
    return last


@pytest.mark.slow
def test_a_peer_that_answers_nothing_stops_the_encoder(source, target) -> None:
    """A handful of latents waits in memory, however many ranges and items the job has."""
    target.decodes, target.limits = [hang], LARGE_LIMITS
    job_id = source.start().submit(*LARGE, solver=SOLVER)
    assert target.asked.wait(10)

    def ranges(item: int) -> list[object]:
        return [part for part, _ in source.store.parts(job_id, item) if part == SpoolPart.ENCODED]

    def made() -> int:
        return len(ranges(0))

    wait_until(lambda: made() > 2)
    assert _rest(made) <= 12
    assert not ranges(1)


@pytest.mark.slow
@pytest.mark.parametrize("points", [40, 5_000])
def test_no_latent_leaves_before_it_is_on_the_disk(source, target, monkeypatch, points) -> None:
    """Whole or a range: while the disk is slow the call is open and carries nothing."""
    writes, go_on = threading.Event(), threading.Event()
    write = Spool.put

    def slow(self, transaction, job_id, item, part, data):
        if part == SpoolPart.ENCODED:
            writes.set()
            go_on.wait(20)
        return write(self, transaction, job_id, item, part, data)

    monkeypatch.setattr(Spool, "put", slow)
    job_id = source.start().submit(npy(points))
    assert writes.wait(10)
    assert target.asked.wait(10)
    assert _rest(lambda: len(target.latents)) == 0
    go_on.set()
    assert source.ended(job_id).state == "FINISHED"

"""One job against a target that misbehaves, or is removed: each item ends once, with a reason, whole or in ranges."""

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest

from ddib_fed.data.points import parse_npy, to_npy
from ddib_fed.engine.stack import End
from ddib_fed.errors import LatentNotGaussian
from ddib_fed.latent import Latent
from ddib_fed.protocol.messages import ItemState
from ddib_fed.security import pki
from ddib_fed.v1.common_pb2 import SolverSettings
from source_node.spool import Spool, SpoolPart
from tests import audit_rows
from tests.e2e.harness import wait_until
from tests.node.institutions import Institution
from tests.node.tiny_nodes import gaussian, npy, tiny_engine
from tests.source_node.conftest import LARGE_LIMITS, SOLVER, Source
from tests.source_node.scripted_target import hang, refuse

THREE = [npy(seed=n) for n in range(3)]


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
        error = LatentNotGaussian(facts={"item": 1})
        error.refused = refused
        raise error

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


def encoded(source, target) -> str:
    """A job whose latent is on the disk, and whose peer does not answer."""
    target.decodes = [hang]
    job_id = source.start().submit()
    wait_until(lambda: source.store.get(job_id).items[0].state == ItemState.ENCODED)
    assert target.asked.wait(60)
    return job_id


def test_a_stored_latent_is_sent_again_as_it_is(source, target, engine) -> None:
    """After a stop in the middle, the same model sends the very bytes, without another network call."""
    job_id = encoded(source, target)
    stored = source.store.read_part(job_id, 0, SpoolPart.ENCODED)
    source.stop()
    source.open(engine)
    calls = engine.executor.counters["calls"]
    assert source.start().ended(job_id).state == "FINISHED"
    assert engine.executor.counters["calls"] == calls
    assert set(target.seen[-1].values()) == {Latent.from_bytes(stored, (2,)).sha256}


def test_a_latent_of_a_model_that_was_replaced_is_made_again(source, target) -> None:
    """The new model encodes the item anew, and the record names the new model alone."""
    job_id = encoded(source, target)
    source.stop()
    replaced = tiny_engine("another")
    source.open(replaced)
    calls = replaced.executor.counters["calls"]
    job = source.start().ended(job_id)
    assert (str(job.state), source.states(job)) == ("FINISHED", ["DECODED"])
    assert replaced.executor.counters["calls"] == calls + 8
    assert job.items[0].provenance["source_model_sha256"] == replaced.model.bundle.digest
    source.runner.close()
    replaced.close()


def test_a_stored_latent_that_the_disk_lost_is_made_again(source, target) -> None:
    """A flipped byte in the spool costs an encoding, not the item."""
    job_id = encoded(source, target)
    source.stop()
    path = next(source.config.paths.spool.rglob("0.encoded-*"))
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    source.open(source.node.running_engine)
    assert source.start().ended(job_id).state == "FINISHED"


def test_an_item_that_this_node_cannot_encode_fails_alone(source, target) -> None:
    odd = to_npy(gaussian(400) * 90)
    job = source.start().ended(source.submit(THREE[0], odd, THREE[2]))
    assert source.states(job) == ["DECODED", "FAILED", "DECODED"]
    assert job.items[1].error.reason == "LATENT_NOT_GAUSSIAN"
    assert sorted(target.seen[0]) == [0, 2]


class Hasty:
    """An executor that says of every latent that it took ten evaluations."""

    def __init__(self, executor) -> None:
        self._executor = executor

    def __getattr__(self, name: str):
        return getattr(self._executor, name)

    def submit(self, trajectory, **how):
        made: Future[End] = Future()
        real = self._executor.submit(trajectory, **how)
        real.add_done_callback(lambda done: made.set_result(done.result()._replace(evaluations=10)))
        return made


@pytest.mark.parametrize(("own", "of_target"), [(12, 8), (8, 12)])
def test_the_stricter_of_two_floors_holds_for_latents_as_they_were_made(open_source, target, own, of_target):
    """Sixteen were asked for and ten were made: no latent leaves, whichever node wants twelve."""
    source = open_source(least_evaluations=own)
    target.limits.min_evaluations = of_target
    engine = source.node.running_engine
    honest, engine.executor = engine.executor, Hasty(engine.executor)
    try:
        job = source.start().ended(source.submit(solver=SolverSettings(evaluations=16)))
    finally:
        engine.executor = honest
        target.limits.min_evaluations = 0
    assert (source.states(job), target.seen) == (["FAILED"], [])
    assert job.items[0].error.facts["least"] == "12"


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
    assert target.asked.wait(60)

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

    def slow(self, transaction, job_id, item, new):
        if new.part == SpoolPart.ENCODED:
            writes.set()
            go_on.wait(20)
        return write(self, transaction, job_id, item, new)

    monkeypatch.setattr(Spool, "put", slow)
    job_id = source.start().submit(npy(points))
    assert writes.wait(60)
    assert target.asked.wait(60)
    assert _rest(lambda: len(target.latents)) == 0
    go_on.set()
    assert source.ended(job_id).state == "FINISHED"


def test_a_peer_that_is_removed_while_its_item_is_encoded_does_not_get_it(source, target, monkeypatch):
    """The call is open by then; the latent stays here, and no act of sending is recorded."""
    when_encoded(source, monkeypatch, 0, lambda: source.node.peers.remove("south.example"))
    job = source.start().ended(source.submit())
    assert (str(job.state), job.error.reason) == ("FAILED", "PEER_NOT_FOUND")
    assert target.latents == []
    assert not audit_rows.records(source.config.paths.store, "latent_sent")


@pytest.mark.slow
def test_a_root_that_is_replaced_while_items_are_encoded_ends_what_it_verified(
    source: Source, target, tmp_path, monkeypatch
) -> None:
    """The open call leads to whoever has the old root's key: nothing leaves on it, and nobody else answers there."""
    new = Institution("south.example", tmp_path / "south-again")

    def replace_root() -> None:
        wait_until(lambda: target.latents)
        source.node.peers.add(
            new.peer(target.address), fingerprints=[pki.fingerprint(new.root)], replace=True
        )

    when_encoded(source, monkeypatch, 1, replace_root)
    job = source.start().ended(source.submit(*THREE, deadline_s=5))
    assert str(job.state) == "FAILED"
    assert {item for item, _ in target.latents} == {0}
    assert len(audit_rows.records(source.config.paths.store, "latent_sent")) == 1


def when_encoded(source: Source, monkeypatch, item: int, act: Callable[[], object]) -> None:
    """Act when the engine has an item's latent, before anybody else has it."""
    engine = source.node.running_engine
    encode_each = engine.encode_each

    def encoding(*arguments, **options):
        for outcome in encode_each(*arguments, **options):
            if outcome.number == item:
                act()
            yield outcome

    monkeypatch.setattr(engine, "encode_each", encoding)


@pytest.fixture
def long_ago(source, target):
    """A job of one small and one large item, stopped by a kill after some ranges of the large one were stored."""
    target.limits = LARGE_LIMITS
    target.decodes = [swallow]
    job_id = source.start().submit(npy(10), npy(20_000, seed=1), solver=SOLVER)
    wait_until(lambda: len(target.latents) >= 3)
    source.stop()
    return job_id


def swallow(target, header, items, context):
    for _ in items:
        pass
    yield from ()


@pytest.mark.slow
def test_a_large_item_crosses_in_ranges_and_is_recorded_whole(source, target) -> None:
    """Ascending numbers, no range over the limit, and one translation, latent, record and cycle of all points."""
    target.limits = LARGE_LIMITS
    points = gaussian(9_000)
    job = source.start().ended(source.submit(npy(10), to_npy(points), cycle=True, keep_latent=True))
    assert source.states(job) == ["DECODED"] * 2
    numbers = [number for number, _ in target.latents]
    assert numbers == sorted(set(numbers))
    sent = [latent for _, latent in target.latents]
    assert [len(latent.data) for latent in sent] == [10, *(1_800,) * 5]
    whole = Latent.from_array(np.stack([latent.data for latent in sent[1:]], axis=1).reshape(9_000, 2))
    record = job.items[1].provenance
    assert record["latent_sha256"] == whole.sha256.hex()
    assert record["latent"]["count"] == whole.data.size
    assert record["samples"] == 9_000
    assert record["cycle"]["max"] < 1e-3
    store = source.store
    assert len(parse(store.read_part(job.job_id, 1, SpoolPart.TRANSLATION))) == 9_000
    assert np.array_equal(parse(store.read_part(job.job_id, 1, SpoolPart.LATENT)), whole.data)
    assert np.allclose(parse(store.read_part(job.job_id, 1, SpoolPart.RETURNED)), points, atol=1e-3)


@pytest.mark.slow
def test_ranges_that_were_made_before_a_kill_are_sent_again_as_they_are(source, target, long_ago, engine):
    """Under the same numbers, without a further network call for them; the others are made."""
    before = dict(target.seen[-1])
    kept = source_ranges(source, long_ago)
    source.open(engine)
    evaluated = engine.executor.counters["rows"]
    job = source.start().ended(long_ago)
    assert source.states(job) == ["DECODED"] * 2
    again = target.seen[-1]
    assert all(again.get(number, digest) == digest for number, digest in before.items())
    assert set(kept) <= set(again.values())
    evaluations = engine.executor.counters["rows"] - evaluated
    assert evaluations in {SOLVER.evaluations * (rows - 2_000 * len(kept)) for rows in (20_000, 20_010)}
    assert len(kept) > 1


def parse(file: bytes) -> np.ndarray:
    return parse_npy(file, max_bytes=1 << 20, max_points=100_000, dim=2)


def source_ranges(source, job_id: str) -> list[bytes]:
    """Digests of the stored ranges of item 1, of a source that is stopped."""
    with sqlite3.connect(source.config.paths.store) as books:
        found = books.execute(
            "SELECT sha256 FROM parts WHERE job_id = ? AND item = 1 AND part = 'encoded'", (job_id,)
        )
        return [row[0] for row in found]

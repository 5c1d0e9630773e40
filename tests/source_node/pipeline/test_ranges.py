"""A large item crosses in ranges of rows, is recorded whole, and goes on after a kill where it stopped."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from ddib_fed.data.points import parse_npy, to_npy
from ddib_fed.latent import Latent
from source_node.spool import SpoolPart
from tests.node.tiny_nodes import gaussian, npy
from tests.source_node.conftest import LARGE_LIMITS, SOLVER, wait_until


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
def test_ranges_that_were_made_before_a_kill_are_sent_again_as_they_are(
    source, target, long_ago, engine
) -> None:
    """Under the same numbers, without a further network call for them; the others are made."""
    before = dict(target.seen[-1])
    kept = source_ranges(source, long_ago)
    source.open(engine)
    evaluated = engine.counters["rows"]
    job = source.start().ended(long_ago)
    assert source.states(job) == ["DECODED"] * 2
    again = target.seen[-1]
    assert all(again.get(number, digest) == digest for number, digest in before.items())
    assert set(kept) <= set(again.values())
    evaluations = engine.counters["rows"] - evaluated
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

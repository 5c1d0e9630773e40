"""Requests that join others at any step, or take the rows of one that ended, get what each gets alone."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch

from ddib_fed.data.synthetic import sample
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine import batcher as batching
from ddib_fed.engine import streams
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.executors import CallingThread
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control, Leg, ToDecode, ToEncode
from ddib_fed.engine.stack import Stack, Trajectory
from ddib_fed.errors import Cancelled, PolicyDenied
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import pretrained
from tests.engine.test_batcher import SETTINGS, points


def test_requests_that_join_at_any_step_with_any_solver_give_what_each_gives_alone() -> None:
    """Recurrences of several windows and driven generators, both ways, in one state: each within rounding."""
    model = DomainModel(pretrained("moons"))
    batcher, alone = Batcher(model, rows=256), CallingThread(model, 256)
    asked = [
        ("encode", SolverSettings(evaluations=12), 1),
        ("decode", SolverSettings(evaluations=9), 3),
        ("decode", SolverSettings(order=2, evaluations=7), 2),
        ("encode", SolverSettings("rk4", evaluations=8), 5),
        ("decode", SolverSettings("ddim", evaluations=6), 1),
        ("decode", SolverSettings("alf", evaluations=7), 4),
    ]
    work = [Trajectory(stage, points(rows, rows), settings) for stage, settings, rows in asked]
    found: dict[int, Future[torch.Tensor]] = {}

    def another_joins(step: int, _: int) -> None:
        if 0 < step < len(work):
            found[step] = batcher.submit(work[step])

    first = batcher.submit(work[0], on_step=another_joins)
    results = [first.result(20), *(found[number].result(20) for number in range(1, len(work)))]
    assert batcher.counters["calls"] <= 20
    batcher.close()
    for each, result in zip(work, results, strict=True):
        torch.testing.assert_close(result, alone.submit(each).result(), atol=2e-5, rtol=2e-5)


def requesters(batcher: Batcher, work: list[list[Trajectory]]) -> list[list[Future[torch.Tensor]]]:
    """Each asks for its next trajectory once it has its last; they begin one step after another."""
    found: list[list[Future[torch.Tensor]]] = [[] for _ in work]
    done = threading.Semaphore(0)

    def ask(who: int, on_step=None) -> None:
        future = batcher.submit(work[who][len(found[who])], on_step=on_step)
        found[who].append(future)
        future.add_done_callback(lambda _: answered(who))

    def answered(who: int) -> None:
        if len(found[who]) < len(work[who]):
            ask(who)
        else:
            done.release()

    ask(0, lambda step, _: ask(step) if 0 < step < len(work) else None)
    for _ in work:
        assert done.acquire(timeout=20)
    return found


@pytest.mark.parametrize("domain", ["moons", "concentric-rings"])
def test_who_takes_the_rows_of_one_that_ended_gets_what_it_gets_alone(domain, monkeypatch) -> None:
    """Requests of one size, one behind the other: most join without a new stack."""
    made = []
    monkeypatch.setattr(batching, "Stack", lambda chosen: made.append(Stack(chosen)) or made[-1])
    model = DomainModel(pretrained(domain))
    batcher, alone = Batcher(model, rows=256), CallingThread(model, 256)
    work = [
        [Trajectory("decode", points(2, 10 * who + turn), SETTINGS) for turn in range(5)] for who in range(4)
    ]
    found = requesters(batcher, work)
    batcher.close()
    assert len(made) <= 12, "sixteen joined one that had ended"
    for each, futures in zip(work, found, strict=True):
        for trajectory, future in zip(each, futures, strict=True):
            expected = alone.submit(trajectory).result()
            torch.testing.assert_close(future.result(), expected, atol=2e-5, rtol=2e-5)


def test_who_takes_the_rows_of_one_that_ended_gets_none_of_its_velocities() -> None:
    """Not even those that no weight makes harmless: NaN."""
    model = DomainModel(pretrained("moons"))
    batcher = Batcher(model, rows=256)
    spoilt = Trajectory("decode", torch.full((2, 2), math.nan), SETTINGS)
    work = [[Trajectory("decode", points(2, who), SETTINGS), spoilt] * 2 for who in range(3)]
    for _, bad, good, _ in requesters(batcher, work):
        assert bad.result().isnan().all()
        assert good.result().isfinite().all()
    batcher.close()


def without_memory(*_):
    raise torch.OutOfMemoryError("no memory for all rows")


@pytest.mark.slow
def test_every_leg_ends_whatever_meets_its_ranges(amount, monkeypatch) -> None:
    """Several owners; joining fails now and then, and legs are cancelled: each has an end, and no rows of another."""
    model, chance, lock = DomainModel(pretrained("moons")), random.Random(0), threading.Lock()
    batcher, counts = Batcher(model, rows=16), Counter()
    party, settings = LocalParty(model, batcher), SolverSettings(evaluations=4)
    latents = [Latent.from_array(points(40, seed).numpy()) for seed in range(6)]
    alone = CallingThread(model, 256)
    expected = [
        model.denormalise(alone.submit(Trajectory("decode", points(40, seed), settings)).result().numpy())
        for seed in range(6)
    ]

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def join(parts):
        with lock:
            fails = chance.random() < 0.1
        return without_memory() if fails else torch.cat(parts)

    monkeypatch.setattr(streams, "torch", SimpleNamespace(cat=join))

    def legs(owner: int, rounds: int) -> None:
        own = random.Random(owner)
        for _ in range(rounds):
            control = Control()
            order = own.sample(range(6), 6)
            cancelling = own.randrange(12)
            items = (ToDecode(number, latents[number]) for number in order)
            try:
                for place, found in enumerate(
                    party.decode_each(items, Leg(settings, control=control, owner=str(owner)))
                ):
                    assert found.number == order[place]
                    torch.testing.assert_close(found.samples, expected[found.number], atol=2e-5, rtol=2e-5)
                    if place == cancelling:
                        control.cancel()
                count("whole")
            except (torch.OutOfMemoryError, Cancelled) as error:
                count(type(error).__name__)

    rounds = amount(12, 400)
    threads = [threading.Thread(target=legs, args=(owner, rounds), daemon=True) for owner in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 120 + rounds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a leg waits for what will not come"
    batcher.close()
    assert counts["whole"] + counts["OutOfMemoryError"] + counts["Cancelled"] == 4 * rounds
    assert min(counts["whole"], counts["OutOfMemoryError"], counts["Cancelled"]) > 0


class Hasty(CallingThread):
    """Ends every range but the first early, as a worker elsewhere might."""

    def submit(self, trajectory, *, control=None, on_step=None):
        begun, future = self.counters["calls"], super().submit(trajectory, control=control, on_step=on_step)
        future.evaluations = future.evaluations if begun == 0 else 1
        return future


def test_a_latent_one_range_of_which_had_too_few_evaluations_is_refused() -> None:
    """The floor is there because such a latent gives its sample away; the other ranges do not hide it."""
    model = DomainModel(pretrained("moons"))
    samples = sample("moons", 20, 0)
    leg = Leg(SolverSettings(evaluations=12), least_evaluations=12)
    assert LocalParty(model, CallingThread(model, 8)).encode(ToEncode(0, samples), leg)
    with pytest.raises(PolicyDenied, match="made with 1 evaluations"):
        LocalParty(model, Hasty(model, 8)).encode(ToEncode(0, samples), leg)

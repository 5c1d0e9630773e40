"""A piece of a batch is the same whether it was made ahead or not, and one that nobody wants holds nothing up."""

import threading

import pytest
import torch

from ddib_fed.training import trainer
from ddib_fed.training.distributed import World
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.trainer import Piece, Prefetch, Trainer, pays

CPU = torch.device("cpu")
FIRST, SECOND, OTHER = Piece(0, 0, 4), Piece(0, 4, 8), Piece(7, 0, 4)


@pytest.fixture
def made():
    return []


@pytest.fixture
def ahead(made):
    found = Prefetch(lambda piece: made.append((piece, threading.current_thread())) or piece, CPU, ahead=True)
    yield found
    found.close()


def test_what_follows_is_made_on_another_thread_before_it_is_asked_for(ahead, made):
    assert ahead.get(FIRST, SECOND) == FIRST
    assert ahead._next[1].result(10) == SECOND
    assert ahead.get(SECOND, None) == SECOND
    assert [piece for piece, _ in made] == [FIRST, SECOND]
    assert threading.current_thread() not in {thread for _, thread in made}


def test_another_piece_than_was_expected_is_made_anew(ahead, made):
    """As after a halved microbatch, or a restart."""
    ahead.get(FIRST, SECOND)
    assert ahead.get(OTHER, FIRST) == OTHER
    assert ahead.get(FIRST, None) == FIRST
    assert {thread for _, thread in made} == {made[0][1]}


def test_an_error_comes_with_the_piece_that_it_is_of():
    """Memory that runs out while the next piece is made does not end the step before."""

    def make(piece):
        if piece == SECOND:
            raise MemoryError("no room")
        return piece

    one = Prefetch(make, CPU, ahead=True)
    assert one.get(FIRST, SECOND) == FIRST
    with pytest.raises(MemoryError, match="no room"):
        one.get(SECOND, None)
    one.close()


def test_closed_it_still_gives_pieces_and_has_no_thread(ahead, made):
    ahead.get(FIRST, SECOND)
    ahead.close()
    assert ahead.get(SECOND, FIRST) == SECOND
    assert made[-1] == (SECOND, threading.current_thread())


def test_a_thread_is_worth_it_where_a_core_is_free(monkeypatch):
    monkeypatch.setattr(trainer.os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pays(CPU, 1)
    assert not pays(CPU, 2)
    assert pays(torch.device("cuda"), 2)


def test_a_run_ahead_computes_what_a_run_without_it_computes(tiny):
    """Bit for bit."""
    weights = []
    for ahead in (True, False):
        one = Trainer(PointTask(tiny, open_points(tiny)), World(0, 1, CPU), ahead=ahead)
        for _ in range(3):
            one.advance()
        one.close()
        weights.append(torch.cat([p.detach().flatten() for p in one.network.parameters()]))
    assert torch.equal(*weights)

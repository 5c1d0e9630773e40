"""A piece of a batch is the same whether it was made ahead or not, and one that nobody wants holds nothing up."""

import threading

import pytest
import torch

from ddib_fed.training.distributed import World
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.trainer import Piece, Prefetch, Trainer

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

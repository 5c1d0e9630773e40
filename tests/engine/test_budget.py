"""The size of a network call: the smallest that costs little more a row than the best, measured."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.engine.batcher import Budget, Recipe, measured, sweep
from ddib_fed.engine.model import DomainModel
from tests.node.tiny_nodes import tiny_bundle
from tests.runs.tiny_models import tiny


class Machine:
    """A clock that a call of so many rows moves on by overhead and rows; memory ends somewhere."""

    def __init__(self, overhead: float, row: float, most: int = 1 << 20) -> None:
        self.now, self.overhead, self.row, self.most = 0.0, overhead, row, most

    def call(self, rows: int):
        def run() -> None:
            if rows > self.most:
                raise torch.OutOfMemoryError
            self.now += self.overhead + rows * self.row

        return run

    def sweep(self, limit_s: float = 100.0) -> dict[int, float]:
        sizes = (1 << n for n in range(20))
        return sweep(sizes, self.call, limit_s=limit_s, clock=lambda: self.now)


def test_a_sweep_ends_when_larger_batches_no_longer_pay() -> None:
    """At 64 rows of overhead 4,096 rows are within 1 % of the best; no size is tried far beyond."""
    found = Machine(0.064, 0.001).sweep()
    assert Budget(found).rows == 4096
    assert max(found) <= 8192


def test_a_sweep_ends_in_time_and_before_memory_does() -> None:
    """One size is measured at least, and what does not fit is no error."""
    machine = Machine(0.01, 0.05)
    assert max(machine.sweep(limit_s=1.0)) <= 8
    assert machine.now < 2.0
    assert list(Machine(100.0, 0.0).sweep(limit_s=1.0)) == [1]
    assert max(Machine(1e-4, 1e-6, most=8).sweep()) == 8
    with pytest.raises(torch.OutOfMemoryError):
        Machine(0.1, 0.1, most=0).sweep()


@pytest.mark.parametrize("bundle", [tiny_bundle(), tiny(num_classes=3)], ids=["points", "pictures"])
def test_a_model_is_measured_where_it_works(bundle) -> None:
    """A recipe without a size measures one, and the batcher uses it."""
    budget = measured(DomainModel(bundle), 1, limit_s=0.05)
    assert budget.rows in budget.seconds
    assert all(cost > 0 for cost in budget.seconds.values())
    warm = Recipe(bundle, merge_rows=0, merge_pixels=0, device="cpu", threads=1).warm()
    warm.close()
    assert warm.rows >= 1

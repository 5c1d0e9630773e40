"""Steps of a trainer, and the loss of each."""

from __future__ import annotations

from ddib_fed.training.trainer import Losses


def losses_of(one, steps):
    """Take steps and read each loss."""
    losses, found = Losses(), []
    for _ in range(steps):
        loss = one.advance()
        losses.add(one.step, loss)
        found += losses.read()
    return found

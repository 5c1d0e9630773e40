"""SOAP for stacks of matrices: Adam where there is nothing to turn, better than Adam where the bases are turned."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.training.tuning.soap import MOMENTUM, SECOND, Soap


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learned(optimiser_of, start, loss_of, steps):
    """The parameter after so many steps from `start`."""
    parameter = start.clone().requires_grad_()
    optimiser = optimiser_of([parameter])
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(parameter).backward()
        optimiser.step()
    return parameter.detach()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05, betas=(MOMENTUM, SECOND), eps=1e-12)


def soap(parameters):
    return Soap(parameters, 0.05)


def stretched(rows, columns):
    """A least-squares loss of a matrix whose directions are turned and stretched by 1 to 1,000 on each side."""
    left = torch.linalg.qr(drawn(rows, rows, seed=1))[0] * torch.logspace(0, -1.5, rows, dtype=torch.float64)
    right = torch.linalg.qr(drawn(columns, columns, seed=2))[0] * torch.logspace(
        0, -1.5, columns, dtype=torch.float64
    )
    wanted = drawn(1, rows, columns, seed=3)
    return lambda parameter: (left.T @ (parameter - wanted) @ right).square().sum()


def test_of_rows_it_is_adam():
    """Biases are rows; nothing is there to be turned. The oracle is torch's."""
    start, wanted = drawn(4, 1, 6), drawn(4, 1, 6, seed=1)
    ends = [learned(each, start, lambda row: (row - wanted).pow(4).sum(), 30) for each in (adam, soap)]
    torch.testing.assert_close(*ends)


def test_matrices_of_a_stack_know_nothing_of_one_another():
    """The steps of a leg are learned side by side, each as if alone."""
    start, wanted = drawn(3, 5, 4), drawn(3, 5, 4, seed=1)
    together = learned(soap, start, lambda all_: (all_ - wanted).pow(4).sum(), 25)
    for i in range(3):
        one = slice(i, i + 1)
        alone = learned(soap, start[one], lambda each, one=one: (each - wanted[one]).pow(4).sum(), 25)
        torch.testing.assert_close(together[one], alone)


def test_turned_and_stretched_directions_are_learned_faster_than_by_adam():
    """What it is for; with the same rate and as many gradients."""
    loss_of, start = stretched(12, 8), torch.zeros(1, 12, 8, dtype=torch.float64)
    losses = [float(loss_of(learned(each, start, loss_of, 200))) for each in (adam, soap)]
    assert losses[1] < 0.1 * losses[0]


def test_a_closure_may_compute_the_gradients():
    """As of torch's own optimisers."""
    parameter = torch.ones(1, 2, 2, requires_grad=True)
    optimiser = Soap([parameter], 0.1)

    def closure():
        optimiser.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimiser.step(closure) == pytest.approx(4.0)
    assert float(parameter.detach().square().sum()) < 4.0


def test_a_parameter_without_a_gradient_stays():
    """Not every parameter need be in a loss."""
    parameter = torch.ones(1, 2, 2, requires_grad=True)
    Soap([parameter], 0.1).step()
    assert bool((parameter == 1.0).all())

"""SOAP for stacks of small matrices: Adam in the eigenbasis of Shampoo's two averages of the gradient's squares.

L <- b L + (1 - b) G G'     R <- b R + (1 - b) G' G     Q_L, Q_R their eigenvectors
W <- W - rate Q_L (Adam of Q_L' G Q_R) Q_R'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

MOMENTUM = 0.9
SECOND = 0.97
"""Decay of the averages of squares, of Adam's and of Shampoo's."""
EVERY = 10
"""Steps between two turns of the bases."""
FLOOR = 1e-4
"""Share of a matrix's mean gradient below which a direction is noise: it must not get a step as long as the others'."""
TINY = 1e-12


class Soap(torch.optim.Optimizer):
    """For parameters (E, M, N); of rows, M = 1, it is Adam."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the gradients, which a closure may compute."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(self._direction(parameter, parameter.grad), alpha=group["lr"])
        return loss

    def _direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Where the parameter goes, per unit of the rate."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state |= {"count": 0, "mean": torch.zeros_like(gradient), "squares": torch.zeros_like(gradient)}
        state["count"] += 1
        state["mean"].lerp_(gradient, 1.0 - MOMENTUM)
        bases = _bases(state, gradient) if parameter.shape[1] > 1 else None
        turned, mean = (_into(bases, each) for each in (gradient, state["mean"]))
        state["squares"].lerp_(turned.square(), 1.0 - SECOND)
        count: int = state["count"]
        first, second = 1.0 - MOMENTUM**count, 1.0 - SECOND**count
        sizes: Tensor = (state["squares"] / second).sqrt() + TINY
        if bases is None:
            return mean / first / sizes
        ahead = mean / first / (sizes + FLOOR * sizes.mean((1, 2), keepdim=True))
        return bases[0] @ ahead @ bases[1].mT


def _into(bases: tuple[Tensor, Tensor] | None, matrices: Tensor) -> Tensor:
    return matrices if bases is None else bases[0].mT @ matrices @ bases[1]


def _bases(state: dict[str, Any], gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenbases (E, M, M) and (E, N, N), brought up to date."""
    sides = {"left": gradient @ gradient.mT, "right": gradient.mT @ gradient}
    for name, square in sides.items():
        if name not in state:
            state[name] = square * (1.0 - SECOND)
            state[f"{name} basis"] = torch.linalg.eigh(square)[1]
            continue
        state[name].lerp_(square, 1.0 - SECOND)
        if state["count"] % EVERY == 0:
            # One step of orthogonal iteration from the last bases, as the paper does, in the place of an eigh.
            state[f"{name} basis"] = torch.linalg.qr(state[name] @ state[f"{name} basis"])[0]
    return state["left basis"], state["right basis"]

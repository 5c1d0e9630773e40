"""Networks that predict eps, x0 or v, seen as one function: (x, level) to v = dx/dphi.

With x = cos(phi) x0 + sin(phi) eps and the angle phi = atan2(sigma, alpha), the probability-flow ODE is
dx/dphi = v, v = alpha eps - sigma x0 (Salimans, Ho, arXiv 2202.00512, appendix D), hence

    from eps: v = (eps - sigma x) / alpha      from x0: v = (alpha x - x0) / sigma
    back:     x0 = alpha x - sigma v           eps = sigma x + alpha v

The rule: where a network cannot know (eps at alpha = 0, x0 at sigma = 0) v is 0, never NaN or infinite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.schedule import Level
from ddib_fed.errors import SettingsInvalid

Parameterisation = Literal["eps", "x0", "v"]
TimeInput = Literal["timestep", "lambda"]
Condition = Mapping[str, Tensor] | None

# Beyond this lambda the level is data or noise to float32; the network is told the bound instead of infinity.
LAMBDA_BOUND = 20.0


@dataclass(frozen=True, slots=True)
class Query:
    """The network is to be evaluated here.

    Attributes:
        x: State (N, *sample_shape). It is the solver's buffer: valid until the solver is sent the answer.
        level: Its noise level.
        cond: What the network is conditioned on, first dimension N; or None.
    """

    x: Tensor
    level: Level
    cond: Condition = None


def v_from_eps(eps: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Turn eps into v: eps, x (N, ...) at alpha, sigma (floats, or tensors that broadcast); 0 where alpha is 0."""
    return _divide(eps - sigma * x, alpha)


def v_from_x0(x0: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Turn x0 into v: x0, x (N, ...) at alpha, sigma (floats, or tensors that broadcast); 0 where sigma is 0."""
    return _divide(alpha * x - x0, sigma)


def x0_from_v(v: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Turn v into x0 = alpha x - sigma v, shape of x."""
    return alpha * x - sigma * v


def eps_from_v(v: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Turn v into eps = sigma x + alpha v, shape of x."""
    return sigma * x + alpha * v


def _divide(numerator: Tensor, divisor: float | Tensor) -> Tensor:
    if isinstance(divisor, Tensor):
        zero = divisor == 0
        return torch.where(zero, torch.zeros_like(numerator), numerator / torch.where(zero, 1.0, divisor))
    return numerator.div_(divisor) if divisor != 0.0 else numerator.zero_()


class Denoiser:
    """A network with what it predicts and how it is told the time; called, it answers v.

    The network is called as ``network(x, times, rows=None, **cond)``: `times` is (1,) for all rows, or (K,)
    with `rows` (N,) saying which of them each row of x has, so that time embeddings are made once per level.

    Args:
        network: Module; it is put into evaluation mode.
        parameterisation: What it predicts: "eps", "x0" or "v". Output channels beyond those of x are ignored.
        time_input: "timestep" (the level's t) or "lambda" (log(alpha / sigma)).

    Raises:
        SettingsInvalid: An unknown parameterisation or time input.
    """

    def __init__(
        self, network: nn.Module, parameterisation: Parameterisation = "v", time_input: TimeInput = "lambda"
    ) -> None:
        if parameterisation not in get_args(Parameterisation):
            raise SettingsInvalid(f"there is no parameterisation {parameterisation!r}", hint="eps, x0 or v")
        if time_input not in get_args(TimeInput):
            raise SettingsInvalid(f"there is no time input {time_input!r}", hint="timestep or lambda")
        self.network = network.eval()
        self.parameterisation = parameterisation
        self.time_input = time_input
        parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
        self.dtype = parameter.dtype
        self.device = parameter.device

    def __call__(self, x: Tensor, level: Level, cond: Condition = None) -> Tensor:
        """Evaluate v at (x, level): shape and dtype of x (N, *sample_shape); a fresh tensor."""
        times = self._times(torch.tensor([level], dtype=torch.float64))
        out = self._network(x, times, None, cond)
        return self._to_v(out, x, level.alpha, level.sigma)

    def evaluate_merged(
        self, x: Tensor, levels: Sequence[Level], counts: Sequence[int], cond: Condition = None
    ) -> Tensor:
        """Evaluate v for several requests in one network call.

        Args:
            x: States one under the other, (sum of counts, *sample_shape).
            levels: One level a request.
            counts: Rows of each request.
            cond: As in `Query`, for all rows.

        Returns:
            v, shape and dtype of x; within rounding what one call a request gives.
        """
        table = torch.tensor(list(levels), dtype=torch.float64)
        rows = torch.repeat_interleave(torch.arange(len(levels)), torch.tensor(list(counts)))
        return self._evaluate(x, table, rows, cond)

    def evaluate(
        self, x: Tensor, times: Tensor, alphas: Tensor, sigmas: Tensor, cond: Condition = None
    ) -> Tensor:
        """Evaluate v with a level of its own for each row: `times`, `alphas`, `sigmas` are (N,), best in float64."""
        table = torch.stack([alphas.double(), sigmas.double(), times.double()], dim=1).cpu()
        table, rows = torch.unique(table, dim=0, return_inverse=True)
        return self._evaluate(x, table, rows, cond)

    def output(self, x: Tensor, level: Level, cond: Condition = None) -> Tensor:
        """What the network itself says at (x, level): eps, x0 or v, in the dtype of x."""
        return self._network(x, self._times(torch.tensor([level], dtype=torch.float64)), None, cond)

    def _evaluate(self, x: Tensor, table: Tensor, rows: Tensor, cond: Condition) -> Tensor:
        """Evaluate v with levels `table` (K, 3) as (alpha, sigma, t) and `rows` (N,) pointing into it."""
        rows = rows.to(x.device)
        out = self._network(x, self._times(table), rows, cond)
        shape = (-1,) + (1,) * (x.ndim - 1)
        alpha, sigma = (table[:, i].to(x.device, x.dtype)[rows].reshape(shape) for i in (0, 1))
        return self._to_v(out, x, alpha, sigma)

    def _times(self, table: Tensor) -> Tensor:
        """What the network is told for levels (K, 3) as (alpha, sigma, t): (K,) in the network's dtype."""
        if self.time_input == "timestep":
            told = table[:, 2]
        else:
            told = torch.log(table[:, 0] / table[:, 1]).clamp(-LAMBDA_BOUND, LAMBDA_BOUND)
        return told.to(self.device, self.dtype)

    def _network(self, x: Tensor, times: Tensor, rows: Tensor | None, cond: Condition) -> Tensor:
        extra: Mapping[str, Any] = cond or {}
        out: Tensor = self.network(x.to(self.dtype), times, rows=rows, **extra)
        return out[:, : x.shape[1]].to(x.dtype)

    def _to_v(self, out: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        if self.parameterisation == "eps":
            return v_from_eps(out, x, alpha, sigma)
        if self.parameterisation == "x0":
            return v_from_x0(out, x, alpha, sigma)
        return out

"""Networks that predict eps, x0 or v, seen as one function: (x, level) to v = dx/dphi.

With x = cos(phi) x0 + sin(phi) eps and the angle phi = atan2(sigma, alpha), the probability-flow ODE is
dx/dphi = v, v = alpha eps - sigma x0 (Salimans, Ho, arXiv 2202.00512, appendix D), hence

    from eps: v = (eps - sigma x) / alpha      from x0: v = (alpha x - x0) / sigma
    back:     x0 = alpha x - sigma v           eps = sigma x + alpha v

Where a network cannot know (eps at alpha = 0, x0 at sigma = 0) v is 0, never NaN or infinite.

A flow map is a network of two levels: u(x, t, s), the mean of v along the ODE's path from x at level t to level s, so
that x_s = x + (phi_s - phi_t) u in one evaluation (Geng et al., MeanFlow, arXiv 2505.13447, (3)); u(x, t, t) = v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.running import Plain, Run
from ddib_fed.diffusion.schedule import Level
from ddib_fed.diffusion.transfers import on_device
from ddib_fed.errors import SettingsInvalid

Parameterisation = Literal["eps", "x0", "v"]
TimeInput = Literal["timestep", "lambda", "scaled-lambda"]
Condition = Mapping[str, Tensor] | None

# Beyond this lambda the level is data or noise to float32; the network receives the bound instead of infinity.
LAMBDA_BOUND = 20.0
# What "scaled-lambda" multiplies lambda by: the fastest feature of the public time embedding then turns by 4 rad a
# unit of lambda. Factors 1, 4, 25 ended at held-out losses .450, .443, .461 (satellite at 16 x 16, 250 steps).
LAMBDA_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class Query:
    """The network is to be evaluated here.

    Attributes:
        x: State (N, *sample_shape). It is the solver's buffer: valid until the solver is sent the answer.
        level: Its noise level.
        cond: What the network is conditioned on, first dimension N; or None.
        to: The level to which the mean velocity is asked, of a flow map; None for the velocity at `level`.
    """

    x: Tensor
    level: Level
    cond: Condition = None
    to: Level | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """The levels of the rows of a batch, each distinct level once.

    Attributes:
        table: Distinct levels (K, 3) as (alpha, sigma, t), float64 on the CPU.
        rows: (N,) pointing into `table`, on the device of the batch; None when all rows share its only level.
        alpha: Of each row: a number, or a tensor that broadcasts over the batch.
        sigma: The same.
        to: Levels (K, 3) to which the mean velocity is asked, beside those of `table`; None for the velocity.
    """

    table: Tensor
    rows: Tensor | None
    alpha: float | Tensor
    sigma: float | Tensor
    to: Tensor | None = None

    @classmethod
    def shared(cls, level: Level, to: Level | None = None) -> Places:
        """All rows at one level, and asked to one level."""
        asked = None if to is None else torch.tensor([to], dtype=torch.float64)
        return cls(torch.tensor([level], dtype=torch.float64), None, level.alpha, level.sigma, asked)

    @classmethod
    def by_row(cls, x: Tensor, table: Tensor, rows: Tensor, to: Tensor | None = None) -> Places:
        """Rows of x (N, ...) at levels `table` (K, 3), asked to levels `to` (K, 3), that `rows` (N,) point into."""
        rows = on_device(rows, x.device)
        shape = (-1,) + (1,) * (x.ndim - 1)
        alpha, sigma = on_device(table[:, :2].T, x.device, x.dtype)[:, rows].reshape(2, *shape)
        return cls(table, rows, alpha, sigma, to)

    @classmethod
    def of_requests(
        cls, x: Tensor, levels: Sequence[Level], rows: Tensor, to: Sequence[Level | None] | None = None
    ) -> Places:
        """Rows of x (N, ...), each of the request that `rows` (N,) says, at a level of each request, asked to `to`."""
        table = torch.tensor(list(levels), dtype=torch.float64)
        asked = None
        if to is not None and any(target is not None for target in to):
            pairs = zip(to, levels, strict=True)
            asked = torch.tensor([target or level for target, level in pairs], dtype=torch.float64)
        return cls.by_row(x, table, rows, asked)

    def chosen(self, which: Tensor) -> Places:
        """Of rows `which` (K,) int64, which may repeat."""
        if self.rows is None or isinstance(self.alpha, float) or isinstance(self.sigma, float):
            return self
        which = on_device(which, self.rows.device)
        return replace(self, rows=self.rows[which], alpha=self.alpha[which], sigma=self.sigma[which])

    def twice(self) -> Places:
        """For a batch under itself."""
        if self.rows is None or isinstance(self.alpha, float) or isinstance(self.sigma, float):
            return self
        return replace(
            self,
            rows=torch.cat([self.rows, self.rows]),
            alpha=torch.cat([self.alpha, self.alpha]),
            sigma=torch.cat([self.sigma, self.sigma]),
        )


def told_times(table: Tensor, time_input: TimeInput) -> Tensor:
    """The time input of a network for levels `table` (K, 3) as (alpha, sigma, t): (K,) float64."""
    if time_input == "timestep":
        return table[:, 2]
    lam = torch.log(table[:, 0] / table[:, 1]).clamp(-LAMBDA_BOUND, LAMBDA_BOUND)
    return LAMBDA_SCALE * lam if time_input == "scaled-lambda" else lam


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
    """A network with what it predicts and how it receives the time; called, it answers v.

    The network is called as ``network(x, times, rows=None, **cond)``: `times` is (1,) for all rows, or (K,)
    with `rows` (N,) saying which of them each row of x has, so that time embeddings are made once per level. A flow
    map (a network with the attribute `flow_map` set) also receives ``to``, the times of the levels asked to.

    Args:
        network: Module; it is put into evaluation mode.
        parameterisation: What it predicts: "eps", "x0" or "v". Output channels beyond those of x are ignored.
        time_input: "timestep" (t), "lambda" (log(alpha / sigma)) or "scaled-lambda" (`LAMBDA_SCALE` times that).
        run: How the network is run; None calls it.

    Raises:
        SettingsInvalid: An unknown parameterisation or time input.
    """

    def __init__(
        self,
        network: nn.Module,
        parameterisation: Parameterisation = "v",
        time_input: TimeInput = "lambda",
        run: Run | None = None,
    ) -> None:
        if parameterisation not in get_args(Parameterisation):
            raise SettingsInvalid(f"there is no parameterisation {parameterisation!r}", hint="eps, x0 or v")
        if time_input not in get_args(TimeInput):
            raise SettingsInvalid(
                f"there is no time input {time_input!r}", hint=f"one of {', '.join(get_args(TimeInput))}"
            )
        self.network = network.eval()
        self.run: Run = run or Plain(network)
        self.flow_map = bool(getattr(network, "flow_map", False))
        self.parameterisation = parameterisation
        self.time_input = time_input
        parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
        self.dtype = parameter.dtype
        self.device = parameter.device

    def __call__(self, x: Tensor, level: Level, cond: Condition = None, to: Level | None = None) -> Tensor:
        """Evaluate v at (x, level), or its mean from there to the level `to`: like x; a fresh tensor.

        Raises:
            SettingsInvalid: A mean is asked of a network that is no flow map.
        """
        return self.at(x, Places.shared(level, to), cond)

    def evaluate_merged(
        self,
        x: Tensor,
        levels: Sequence[Level],
        counts: Sequence[int],
        cond: Condition = None,
        to: Sequence[Level | None] | None = None,
    ) -> Tensor:
        """Evaluate v for several requests in one network call.

        Args:
            x: States one under the other, (sum of counts, *sample_shape).
            levels: One level a request.
            counts: Rows of each request.
            cond: As in `Query`, for all rows.
            to: As in `Query`, one a request; None for the velocity of all.

        Returns:
            v, shape and dtype of x; within rounding what one call a request gives.

        Raises:
            SettingsInvalid: A mean is asked of a network that is no flow map.
        """
        rows = torch.repeat_interleave(torch.arange(len(levels)), torch.tensor(list(counts)))
        return self.at(x, Places.of_requests(x, levels, rows, to), cond)

    def evaluate(
        self, x: Tensor, times: Tensor, alphas: Tensor, sigmas: Tensor, cond: Condition = None
    ) -> Tensor:
        """Evaluate v with a level of its own for each row: `times`, `alphas`, `sigmas` are (N,), best in float64."""
        table = torch.stack([alphas.double(), sigmas.double(), times.double()], dim=1).cpu()
        table, rows = torch.unique(table, dim=0, return_inverse=True)
        return self.at(x, Places.by_row(x, table, rows), cond)

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        """Evaluate v of x (N, *sample_shape) at `places`: what the other ways to ask come to; a fresh tensor."""
        out = self._network(x, places.table, places.rows, cond, places.to)
        if self.parameterisation == "eps":
            return v_from_eps(out, x, places.alpha, places.sigma)
        if self.parameterisation == "x0":
            return v_from_x0(out, x, places.alpha, places.sigma)
        return out

    def output(self, x: Tensor, level: Level, cond: Condition = None) -> Tensor:
        """What the network itself says at (x, level): eps, x0 or v, in the dtype of x."""
        return self._network(x, torch.tensor([level], dtype=torch.float64), None, cond)

    def _network(
        self, x: Tensor, table: Tensor, rows: Tensor | None, cond: Condition, to: Tensor | None = None
    ) -> Tensor:
        # Times stay in float32: a step number has more digits than half precision keeps.
        wide = torch.promote_types(self.dtype, torch.float32)
        times = told_times(table, self.time_input).to(wide)
        extra: dict[str, Tensor] = dict(cond or {})
        if self.flow_map and to is not None:
            extra["to"] = told_times(to, self.time_input).to(wide)
        elif to is not None:
            raise SettingsInvalid(
                "the network knows velocities at one level alone, and flow-map asks for means between two",
                hint="ddib model distil makes a network for it; or --solver unipc",
            )
        out = self.run(x.to(self.dtype), times, rows, extra)
        return out[:, : x.shape[1]].to(x.dtype)

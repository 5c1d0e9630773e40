"""Networks that predict eps, x0, v or a flow, seen as one function: (x, level) to v = dx/dphi.

With x = cos(phi) x0 + sin(phi) eps and the angle phi = atan2(sigma, alpha), the probability-flow ODE is
dx/dphi = v, v = alpha eps - sigma x0 (Salimans, Ho, arXiv 2202.00512, appendix D), hence

    from eps: v = (eps - sigma x) / alpha      from x0: v = (alpha x - x0) / sigma
    back:     x0 = alpha x - sigma v           eps = sigma x + alpha v

A network of flow matching knows x_t = (1 - t) x0 + t eps = s x, s = 1 / (alpha + sigma), and predicts u = eps - x0:

    from u:   v = s ((alpha - sigma) x + u)

Where a network cannot know (eps at alpha = 0, x0 at sigma = 0) v is 0, never NaN or infinite.

A flow map is a network of two levels: u(x, t, s), the mean of v along the ODE's path from x at level t to level s, so
that x_s = x + (phi_s - phi_t) u in one evaluation (Geng et al., MeanFlow, arXiv 2505.13447, (3)); u(x, t, t) = v.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.schedule import Level
from ddib_fed.errors import SettingsInvalid


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device` in `dtype`; from the host to a GPU by way of pinned memory, without waiting."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.to(dtype or tensor.dtype).pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype or tensor.dtype)


Run = Callable[[Tensor, Tensor, Tensor | None, Mapping[str, Any]], Tensor]
"""Answers for a network: (x, times on the host, rows that point into them, further arguments)."""


def run_plain(
    network: nn.Module, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Any]
) -> Tensor:
    """Call a network with times, and with those of "to", on the device of x; without gradients in inference mode."""
    if "to" in extra:
        extra = {**extra, "to": on_device(extra["to"], x.device)}
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(not gradients):
        out: Tensor = network(x, on_device(times, x.device), rows=rows, **extra)
    return out if gradients else out.clone()  # a tensor that may be written outside of it


def kind_of(network: nn.Module) -> tuple[torch.dtype, torch.device]:
    parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    return parameter.dtype, parameter.device


Parameterisation = Literal["eps", "x0", "v", "flow"]
TimeInput = Literal["timestep", "lambda", "scaled-lambda"]
Condition = Mapping[str, Tensor] | None

# Beyond this lambda the level is data or noise to float32; the network receives the bound instead of infinity.
LAMBDA_BOUND = 20.0
# What "scaled-lambda" multiplies lambda by: the fastest feature of the public time embedding then turns by 4 rad a
# unit of lambda. Factors 1, 4, 25 ended at held-out losses .450, .443, .461 (satellite at 16 x 16, 250 steps).
LAMBDA_SCALE = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class LevelTable:
    """Levels (K, 3) as (alpha, sigma, t), float64 on the CPU, with time inputs that are made once for all calls."""

    table: Tensor
    to: Tensor | None = None
    _times: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    _columns: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, levels: Sequence[Level], to: Sequence[Level | None] | None = None) -> "LevelTable":
        """Of levels, each asked to one, or to itself where that is None; all None for the velocity."""
        asked = None
        if to is not None and any(target is not None for target in to):
            pairs = zip(to, levels, strict=True)
            asked = torch.tensor([target or level for target, level in pairs], dtype=torch.float64)
        return cls(torch.tensor(list(levels), dtype=torch.float64), asked)

    def times(self, time_input: TimeInput, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The time inputs (K,) of the levels and of those asked to, on the CPU: the same tensors each time."""
        key = time_input, dtype
        if key not in self._times:
            to = None if self.to is None else network_times(self.to, time_input).to(dtype)
            self._times[key] = network_times(self.table, time_input).to(dtype), to
        return self._times[key]

    def columns(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Alpha and sigma of the levels, (2, K)."""
        key = device, dtype
        if key not in self._columns:
            self._columns[key] = on_device(self.table[:, :2].T, device, dtype)
        return self._columns[key]


@lru_cache(maxsize=1_024)
def _alone(level: Level, to: Level | None) -> LevelTable:
    return LevelTable.of((level,), (to,))


@dataclass(frozen=True, slots=True)
class Places:
    """The levels of the rows of a batch."""

    levels: LevelTable
    rows: Tensor | None
    level: Level | None = None
    dtype: torch.dtype = torch.float32
    ndim: int = 2

    @classmethod
    def shared(cls, level: Level, to: Level | None = None) -> "Places":
        """All rows at one level, and asked to one."""
        return cls(_alone(level, to), None, level)

    @classmethod
    def by_row(cls, x: Tensor, levels: LevelTable, rows: Tensor) -> "Places":
        """Rows of x (N, ...) at `levels` that `rows` (N,) point into."""
        return cls(levels, on_device(rows, x.device), None, x.dtype, x.ndim)

    @property
    def alpha(self) -> float | Tensor:
        """Of each row: a number, or a tensor that broadcasts over the batch."""
        return self.level.alpha if self.level is not None else self._column(0)

    @property
    def sigma(self) -> float | Tensor:
        return self.level.sigma if self.level is not None else self._column(1)

    def _column(self, number: int) -> Tensor:
        if self.rows is None:
            return self.levels.table[0, number].to(self.dtype)
        columns = self.levels.columns(self.rows.device, self.dtype)
        return columns[number].index_select(0, self.rows).reshape(-1, *(1,) * (self.ndim - 1))

    def chosen(self, which: Tensor) -> "Places":
        """Of rows `which` (K,) int64, which may repeat."""
        if self.rows is None:
            return self
        return replace(self, rows=self.rows[on_device(which, self.rows.device)])


def network_times(table: Tensor, time_input: TimeInput) -> Tensor:
    """The time input of a network for levels `table` (K, 3) as (alpha, sigma, t): (K,) float64."""
    if time_input == "timestep":
        return table[:, 2]
    lam = torch.log(table[:, 0] / table[:, 1]).clamp(-LAMBDA_BOUND, LAMBDA_BOUND)
    return LAMBDA_SCALE * lam if time_input == "scaled-lambda" else lam


def v_from_x0(x0: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    return divided(alpha * x - x0, sigma)


def x0_from_v(v: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    return alpha * x - sigma * v


def divided(numerator: Tensor, divisor: float | Tensor) -> Tensor:
    """The quotient, 0 where the divisor is 0."""
    if isinstance(divisor, Tensor):
        zero = divisor == 0
        return torch.where(zero, torch.zeros_like(numerator), numerator / torch.where(zero, 1.0, divisor))
    return numerator / divisor if divisor != 0.0 else torch.zeros_like(numerator)


class Denoiser:
    """A network with what it predicts and how it receives the time; called, it answers v.

    It is called as ``network(x, times, rows=None, **cond)``: `times` is (1,) for all rows, or (K,) with `rows` (N,)
    saying which of them each row has, so that embeddings are made once a level. A flow map (attribute `flow_map`) also
    receives ``to``, the times of the levels asked to. Output channels beyond those of x are ignored.
    """

    def __init__(
        self,
        network: nn.Module,
        parameterisation: Parameterisation = "v",
        time_input: TimeInput = "lambda",
        run: Run | None = None,
    ) -> None:
        self.network = network.eval()
        self.run: Run = run or partial(run_plain, network)
        self.flow_map = bool(getattr(network, "flow_map", False))
        self.parameterisation = parameterisation
        self.time_input = time_input
        self.dtype, self.device = kind_of(network)
        # Times stay in float32: a step number has more digits than half precision keeps.
        self._time_dtype = torch.promote_types(self.dtype, torch.float32)

    def __call__(self, x: Tensor, level: Level, cond: Condition = None, to: Level | None = None) -> Tensor:
        return self.at(x, Places.shared(level, to), cond)

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        """Evaluate v of x (N, *sample_shape) at `places`: all other calls end here; return a fresh tensor."""
        out = self._network(x, places, cond)
        if self.parameterisation == "eps":
            return divided(out - places.sigma * x, places.alpha)
        if self.parameterisation == "x0":
            return v_from_x0(out, x, places.alpha, places.sigma)
        if self.parameterisation == "flow":
            return ((places.alpha - places.sigma) * x + out) / (places.alpha + places.sigma)
        return out

    def enter(self, x: Tensor, level: Level) -> Tensor:
        """The state of x (N, *sample_shape) at a level that a solver steps, its shape: x, unless it is whitened."""
        del level
        return x

    def leave(self, state: Tensor, level: Level) -> Tensor:
        """The inverse of `enter`."""
        del level
        return state

    def _network(self, x: Tensor, places: Places, cond: Condition) -> Tensor:
        times, to = places.levels.times(self.time_input, self._time_dtype)
        extra: dict[str, Tensor] = dict(cond or {})
        if self.flow_map and to is not None:
            extra["to"] = to
        elif to is not None:
            raise SettingsInvalid(
                "the network knows velocities at one level alone, and flow-map asks for means between two",
                hint="solver=unipc; or of points, a network that ddib model distil makes",
            )
        asked = x / (places.alpha + places.sigma) if self.parameterisation == "flow" else x
        out = self.run(asked.to(self.dtype), times, places.rows, extra)
        return out[:, : x.shape[1]].to(x.dtype)

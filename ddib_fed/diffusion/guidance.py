"""Guidance: denoisers that steer another denoiser towards a class, or hold its prediction within a range.

Each wraps a denoiser and is one, so that solvers and drivers need not know. In the form for the deterministic ODE
(Dhariwal, Nichol, arXiv 2105.05233, algorithm 2; Ho, Salimans, arXiv 2207.12598, (6) with w = scale - 1),

    classifier:        eps' = eps - scale sigma grad_x log p(y | x),  hence  v' = v - scale (sigma / alpha) grad_x log p
    classifier-free:   eps' = eps_null + scale (eps_y - eps_null),    hence  v' = v_null + scale (v_y - v_null)
    clipped:           x0' = clip(x0),                                hence  v' = (alpha x - x0') / sigma

Gradients are switched on inside one evaluation and off again; none reaches the caller. Classes come in the
condition, as {"y": (N,) int64}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import (
    Condition,
    Denoiser,
    Places,
    TimeInput,
    kind_of,
    network_times,
    on_device,
    v_from_x0,
    x0_from_v,
)
from ddib_fed.diffusion.schedule import Level
from ddib_fed.errors import SettingsInvalid


class Classifier:
    """A network that tells the class of noisy data, with how it receives the time."""

    def __init__(self, network: nn.Module, time_input: TimeInput = "lambda") -> None:
        if time_input not in get_args(TimeInput):
            raise SettingsInvalid(f"there is no time input {time_input!r}", hint="timestep or lambda")
        self.network = network.eval()
        self.time_input = time_input
        self.dtype, self.device = kind_of(network)

    def logits(self, x: Tensor, level: Level) -> Tensor:
        """The logits (N, classes) of x (N, *sample_shape) at one level, in the dtype of x."""
        return self._logits(x.to(self.dtype), Places.shared(level)).to(x.dtype)

    def gradient(self, x: Tensor, places: Places, y: Tensor) -> Tensor:
        """grad_x log p(y | x) of x (N, *sample_shape) at `places` for classes y (N,): shape and dtype of x."""
        with torch.enable_grad():
            leaf = x.detach().to(self.dtype, copy=True).requires_grad_()
            # In float32 at least: the log-probability of an unlikely class has no digits left in half precision.
            logits = self._logits(leaf, places)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            chosen = torch.log_softmax(logits, dim=-1).gather(1, y[:, None].to(logits.device))
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf)
        return gradient.to(x.dtype)

    def _logits(self, x: Tensor, places: Places) -> Tensor:
        wide = torch.promote_types(self.dtype, torch.float32)
        times = on_device(network_times(places.table, self.time_input), self.device, wide)
        logits: Tensor = self.network(x, times, rows=places.rows)
        return logits


class Wrapped(Denoiser):
    """A denoiser around another one, with its network, parameterisation and time input."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.network, denoiser.parameterisation, denoiser.time_input, denoiser.run)
        self.inner = denoiser


class ClassifierGuided(Wrapped):
    """Steered by a classifier of noisy data; nothing is steered where alpha is 0."""

    def __init__(self, denoiser: Denoiser, classifier: Classifier, scale: float) -> None:
        super().__init__(denoiser)
        self.classifier = classifier
        self.scale = scale

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        """As `Denoiser.at`; the condition has "y"."""
        y = _classes(cond)
        v = self.inner.at(x, places, cond if _knows_classes(self.network) else without_classes(cond))
        if self.scale == 0.0:
            return v
        gradient = self.classifier.gradient(x, places, y)
        return v.sub_(gradient * _over(places.sigma, places.alpha), alpha=self.scale)


class ClassifierFree(Wrapped):
    """Steered by the difference that the class makes to the network itself; both are one network call."""

    def __init__(self, denoiser: Denoiser, scale: float, null_class: int) -> None:
        super().__init__(denoiser)
        self.scale = scale
        self.null_class = null_class

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        """As `Denoiser.at`; a condition without "y" asks for the unconditional prediction."""
        nothing = torch.full((len(x),), self.null_class, dtype=torch.int64, device=x.device)
        y = (cond or {}).get("y")
        if y is None or self.scale == 0.0:
            return self.inner.at(x, places, {**(cond or {}), "y": nothing})
        if self.scale == 1.0:
            return self.inner.at(x, places, cond)
        doubled = {key: torch.cat([value, value]) for key, value in (cond or {}).items()}
        doubled["y"] = torch.cat([nothing, y.to(x.device)])
        without, with_class = self.inner.at(torch.cat([x, x]), places.twice(), doubled).chunk(2)
        return torch.lerp(without, with_class, self.scale)


class Clipped(Wrapped):
    """Holds the prediction of the data within a range, as the public code does when it decodes."""

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(denoiser)
        self.low, self.high = low, high

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        v = self.inner.at(x, places, cond)
        x0 = x0_from_v(v, x, places.alpha, places.sigma)
        held = x0.clamp(self.low, self.high)
        # From the held x0 alone where it was held: near pure noise x0 is so large that nothing is left of a difference.
        if not isinstance(
            places.sigma, Tensor
        ):  # decided here: a flag on the device would have to be copied there
            if places.sigma == 0.0:
                return v
            return torch.where(x0 == held, v, v_from_x0(held, x, places.alpha, places.sigma))
        within = (x0 == held) | (places.sigma == 0.0)
        return torch.where(within, v, v_from_x0(held, x, places.alpha, places.sigma))


def without_classes(cond: Condition) -> Condition:
    return {key: value for key, value in (cond or {}).items() if key != "y"} or None


def _classes(cond: Condition) -> Tensor:
    held: Mapping[str, Tensor] = cond or {}
    if "y" not in held:
        raise SettingsInvalid("guidance by a classifier needs the class to be steered to")
    return held["y"]


def _knows_classes(network: nn.Module) -> bool:
    return getattr(network, "num_classes", None) is not None


def _over(numerator: float | Tensor, divisor: float | Tensor) -> float | Tensor:
    if isinstance(divisor, Tensor):
        zero = divisor == 0
        return torch.where(zero, torch.zeros_like(divisor), numerator / torch.where(zero, 1.0, divisor))
    return numerator / divisor if divisor != 0.0 else 0.0

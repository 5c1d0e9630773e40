"""Denoisers around another one: they steer it to a class, hold its prediction within a range, turn its channels, or
let it work on larger scenes. Solvers and drivers need not know. In the form for the deterministic ODE
(Dhariwal, Nichol, arXiv 2105.05233, algorithm 2; Ho, Salimans, arXiv 2207.12598, (6) with w = scale - 1),

    classifier:        eps' = eps - scale sigma grad_x log p(y | x),  hence  v' = v - scale (sigma / alpha) grad_x log p
    classifier-free:   eps' = eps_null + scale (eps_y - eps_null),    hence  v' = v_null + scale (v_y - v_null)
    clipped:           x0' = clip(x0),                                hence  v' = (alpha x - x0') / sigma

Classes come in the condition, as {"y": (N,) int64}. A scene's velocity is the mean of those of overlapping tiles at
each step (Bar-Tal et al., MultiDiffusion, arXiv 2302.08113): the scene follows one ODE and has one latent.
"""

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import (
    Condition,
    Denoiser,
    Places,
    TimeInput,
    divided,
    kind_of,
    network_times,
    on_device,
    v_from_x0,
    x0_from_v,
)
from ddib_fed.diffusion.schedule import Level
from ddib_fed.errors import SettingsInvalid


class Classifier:
    """A network that tells the class of noisy data, as logits (N, classes), with how it receives the time."""

    def __init__(self, network: nn.Module, time_input: TimeInput = "lambda") -> None:
        self.network = network.eval()
        self.time_input = time_input
        self.dtype, self.device = kind_of(network)

    def gradient(self, x: Tensor, places: Places, y: Tensor) -> Tensor:
        """grad_x log p(y | x) of x (N, *sample_shape) at `places` for classes y (N,): shape and dtype of x."""
        wide = torch.promote_types(self.dtype, torch.float32)
        times = on_device(network_times(places.levels.table, self.time_input), self.device, wide)
        with torch.enable_grad():
            leaf = x.detach().to(self.dtype, copy=True).requires_grad_()
            # In float32 at least: the log-probability of an unlikely class has no digits left in half precision.
            logits = self.network(leaf, times, rows=places.rows)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            chosen = torch.log_softmax(logits, dim=-1).gather(1, y[:, None].to(logits.device))
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf)
        return gradient.to(x.dtype)


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
        if cond is None or "y" not in cond:
            raise SettingsInvalid("guidance by a classifier needs the class to be steered to")
        knows_classes = getattr(self.network, "num_classes", None) is not None
        others = {key: value for key, value in cond.items() if key != "y"} or None
        v = self.inner.at(x, places, cond if knows_classes else others)
        if self.scale == 0.0:
            return v
        gradient = self.classifier.gradient(x, places, cond["y"])
        return v.sub_(divided(gradient * places.sigma, places.alpha), alpha=self.scale)


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
        twice = places.chosen(torch.arange(len(x)).repeat(2))
        without, with_class = self.inner.at(torch.cat([x, x]), twice, doubled).chunk(2)
        return torch.lerp(without, with_class, self.scale)


class Clipped(Wrapped):
    """Holds the prediction of the data within [-1, 1], as the public code does when it decodes."""

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        v = self.inner.at(x, places, cond)
        x0 = x0_from_v(v, x, places.alpha, places.sigma)
        held = x0.clamp(-1.0, 1.0)
        # From the held x0 alone where it was held: near pure noise x0 is so large that nothing is left of a difference.
        # At sigma = 0, where no solver asks, what was held has v = 0.
        return torch.where(x0 == held, v, v_from_x0(held, x, places.alpha, places.sigma))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """R x for x (N, C, ...) and R (C, C) of its dtype and device."""
    return torch.einsum("ij,nj...->ni...", rotation, x)


class Rotated(Wrapped):
    """In the basis of a rotation of the channels."""

    def __init__(self, denoiser: Denoiser, rotation: Tensor) -> None:
        super().__init__(denoiser)
        self.rotation = rotation

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        """As `Denoiser.at`, x and v in the rotated basis."""
        rotation = self.rotation.to(x.dtype)
        return rotated(self.inner.at(rotated(x, rotation.T), places, cond), rotation)

    def enter(self, x: Tensor, level: Level) -> Tensor:
        rotation = self.rotation.to(x.dtype)
        return rotated(self.inner.enter(rotated(x, rotation.T), level), rotation)

    def leave(self, state: Tensor, level: Level) -> Tensor:
        rotation = self.rotation.to(state.dtype)
        return rotated(self.inner.leave(rotated(state, rotation.T), level), rotation)


OVERLAP = 0.5  # part of a tile's side that the next tile shows too, at least
PIXELS_AT_ONCE = 1 << 17  # of the tiles in one network call: 32 tiles of 64 x 64


def starts(length: int, tile: int) -> list[int]:
    """First pixels of the tiles along a side: from 0 to `length - tile`, evenly."""
    if length < tile:
        raise SettingsInvalid(
            f"a scene of {length} pixels a side is smaller than the model's pictures, {tile} pixels",
            hint="leave the scene out: a smaller picture is fitted to the model's size",
        )
    step = tile - math.floor(OVERLAP * tile)
    count = 1 + -(-(length - tile) // step)
    return [round(index * (length - tile) / max(1, count - 1)) for index in range(count)]


class Tiled(Wrapped):
    """Of scenes (N, C, *sides): v = sum_k w_k v_k, w_k a window that falls to 0 towards the sides of tile k."""

    def __init__(self, denoiser: Denoiser, tile: tuple[int, ...], scene: tuple[int, ...]) -> None:
        super().__init__(denoiser)
        self._scene, self.tiling = scene, Tiling(scene, tile)
        self._weights = on_device(torch.stack(self.tiling.weights), self.device)

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        if tuple(x.shape[2:]) != self._scene:
            raise ValueError(f"a scene {tuple(x.shape[2:])} where {self._scene} is expected")
        blended, parts_of = torch.zeros_like(x), self.tiling.parts
        for numbers, rows in self._calls(len(x)):
            parts = [x[rows, :, *parts_of[number]] for number in numbers]
            which = torch.arange(rows.start, rows.stop).repeat(len(numbers))
            own = {key: value[on_device(which, value.device)] for key, value in (cond or {}).items()} or None
            answers = self.inner.at(torch.cat(parts), places.chosen(which), own)
            for number, v in zip(numbers, answers.chunk(len(numbers)), strict=True):
                blended[rows, :, *parts_of[number]] += self._weights[number].to(x.dtype) * v
        return blended

    def _calls(self, scenes: int) -> Iterator[tuple[range, slice]]:
        """Tiles, and scenes, that one network call evaluates."""
        most = max(1, PIXELS_AT_ONCE // math.prod(self.tiling.tile))
        rows, count = min(scenes, most), len(self.tiling.parts)
        tiles = max(1, most // rows)
        for start in range(0, scenes, rows):
            for first in range(0, count, tiles):
                yield range(first, min(first + tiles, count)), slice(start, min(start + rows, scenes))


Part = tuple[slice, ...]


class Tiling:
    """Overlapping tiles of a scene: the part of each, and weights (`scale` times as large) whose sum is 1 anywhere."""

    def __init__(self, scene: tuple[int, ...], tile: tuple[int, ...], scale: int = 1) -> None:
        self.tile = tile
        corners = product(*(starts(length, size) for length, size in zip(scene, tile, strict=True)))
        self.parts: list[Part] = [
            tuple(slice(start, start + side) for start, side in zip(corner, tile, strict=True))
            for corner in corners
        ]
        whole = torch.ones((), dtype=torch.float64)
        for side in tile:
            place = (torch.arange(scale * side, dtype=torch.float64) + 0.5) / (scale * side)
            whole = whole[..., None] * torch.sin(math.pi * place).square()
        total = torch.zeros([scale * side for side in scene], dtype=torch.float64)
        for part in self.parts:
            total[scaled(part, scale)] += whole
        self.weights = [(whole / total[scaled(part, scale)]).to(torch.float32) for part in self.parts]


def scaled(part: Part, scale: int) -> Part:
    return tuple(slice(scale * each.start, scale * each.stop) for each in part)

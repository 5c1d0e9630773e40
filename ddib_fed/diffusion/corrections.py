"""Corrections of learned steps: what a small network of each step adds to the weights of a multistep rule.

    guess_(i+1) = x_i + sum_j p_ij v_(i-j) + a_i(f_i)        x_i = x_(i-1) + sum_j c_ij v_(i-j) + b_i(f_i)

f_i are numbers that are there without asking the model again: the point, v, and the differences of the last values of v
over phi, which foretell the local error. A local error is a function of the point, because the path through it is; a
rule with the same weights for all points cannot know it (hypersolvers, Poli et al., arXiv 2007.09601). The rule: the
corrections add to a consistent rule and never replace it, so where they add nothing, the rule is `solvers.unipc`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import silu

DIFFERENCES = 3
"""Divided differences of v among the features."""
MAX_HIDDEN = 128
FEATURES = 2 + DIFFERENCES
"""Vectors of the dimension of a point that the features of a step are made of."""


@dataclass(frozen=True, slots=True, eq=False)
class Corrections:
    """The networks of E steps on points of dimension D, with H hidden units; float32.

    Attributes:
        centre: Means of the features, (E, 1, 5 D).
        spread: Their standard deviations, (E, 1, 5 D), above 0.
        first: Weights (E, 5 D, H).
        first_bias: (E, 1, H).
        second: Weights (E, H, H).
        second_bias: (E, 1, H).
        last: Weights (E, H, 2 D): of the predictor's correction, then of the corrector's.
        last_bias: (E, 1, 2 D).
        size: What the results are multiplied by, (E, 1, 2 D): the mean local errors.
    """

    centre: Tensor
    spread: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    last: Tensor
    last_bias: Tensor
    size: Tensor

    @property
    def dimension(self) -> int:
        """Of the points."""
        return self.size.shape[-1] // 2

    def named(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def of_features(self, features: Tensor, step: slice) -> tuple[Tensor, Tensor]:
        """Corrections of predictor and corrector, each (K, N, D), for features (K, N, 5 D) of K steps."""
        scaled = (features - self.centre[step]) / self.spread[step]
        scaled = scaled.sign() * scaled.abs().log1p()
        hidden = silu(scaled @ self.first[step] + self.first_bias[step])
        hidden = silu(hidden @ self.second[step] + self.second_bias[step])
        both = (hidden @ self.last[step] + self.last_bias[step]) * self.size[step]
        return both[..., : self.dimension], both[..., self.dimension :]

    def at(self, step: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Corrections of predictor and corrector, each (N, D), for features (N, 5 D) of one step."""
        ahead, behind = self.of_features(features[None], slice(step, step + 1))
        return ahead[0], behind[0]

    def like(self, x: Tensor) -> Corrections:
        """On the device and in the dtype of x; these where they are there already."""
        if self.size.device == x.device and self.size.dtype == x.dtype:
            return self
        return Corrections(**{name: tensor.to(x) for name, tensor in self.named().items()})


def features_of(phis: tuple[float, ...], step: int, guess: Tensor, history: Sequence[Tensor]) -> Tensor:
    """The features (N, 5 D) of a step.

    Args:
        phis: Angles of the grid's levels, in the order of the walk.
        step: Its number, from 0.
        guess: Where v was evaluated, (N, D).
        history: Values of v (N, D), the newest first; at least as many as the differences need, where there are.
    """
    parts = [guess, history[0]]
    for weights in _differences(phis, step):
        total = torch.zeros_like(guess)
        for weight, v in zip(weights, history, strict=False):
            total = total + weight * v
        parts.append(total)
    return torch.cat(parts, dim=1)


@lru_cache(maxsize=512)
def _differences(phis: tuple[float, ...], step: int) -> tuple[tuple[float, ...], ...]:
    """Weights of each divided difference times the power of the step ahead that it is of; () where there is none."""
    ahead = abs(phis[step + 1] - phis[step])
    found: list[tuple[float, ...]] = []
    for power in range(1, DIFFERENCES + 1):
        nodes = phis[step - power : step + 1][::-1] if step >= power else ()
        products = (
            math.prod(here - other for j, other in enumerate(nodes) if j != i) for i, here in enumerate(nodes)
        )
        found.append(tuple(ahead**power / product for product in products))
    return tuple(found)


def corrections_of(tensors: Mapping[str, Tensor], evaluations: int) -> Corrections:
    """Corrections from tensors by name, checked.

    Raises:
        ValueError: A name, a shape or a number that does not fit.
    """
    names = [field.name for field in fields(Corrections)]
    if sorted(tensors) != sorted(names):
        raise ValueError(f"corrections are the tensors {', '.join(names)}")
    found = Corrections(**{name: tensors[name].float() for name in names})
    if found.size.ndim != 3 or found.first.ndim != 3:
        raise ValueError("corrections have three dimensions each")
    hidden, double = found.first.shape[-1], found.size.shape[-1]
    if double % 2 or not 1 <= hidden <= MAX_HIDDEN:
        raise ValueError(f"corrections have 1 to {MAX_HIDDEN} hidden units, and two results a dimension")
    wide = FEATURES * double // 2
    shapes = (
        (1, wide),
        (1, wide),
        (wide, hidden),
        (1, hidden),
        (hidden, hidden),
        (1, hidden),
        (hidden, double),
        (1, double),
        (1, double),
    )
    for name, shape in zip(names, shapes, strict=True):
        tensor = getattr(found, name)
        if tensor.shape != (evaluations, *shape) or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} of the corrections is not finite, or not of {evaluations} steps")
    if not bool((found.spread > 0).all()):
        raise ValueError("a spread of the corrections is not above 0")
    return found

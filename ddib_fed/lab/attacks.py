"""Attacks: inverters of latents, what correlation tells of them, and membership in a published mean of histograms.

How much of a picture someone reads from its latent who has pairs of other pictures and latents, but not the model:

Three surrogate inverters are fitted to the same pairs, and the best on pairs that were set aside counts:
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddib_fed.errors import ShapeMismatch
from ddib_fed.networks.spectrum import cosines, pictures

Array = NDArray[np.float32]
Numbers = NDArray[np.floating]
TINY = 1e-9
Inverse = Callable[[Array], Array]
"""From latents (N, C, H, W) to pictures of that shape."""
FEWEST = 16
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Of a regression, as multiples of the mean square of what it sees."""
SET_ASIDE = 8
"""One pair in so many chooses penalties and the inverter."""
WIDTH, BLOCKS, BATCH, RATE = 24, (1, 2, 4), 24, 2e-3


@dataclass(frozen=True, slots=True)
class Inverter:
    """The best of the surrogates."""

    name: str
    inverse: Inverse
    errors: dict[str, float]


def fit_inverter(latents: Array, originals: Array, *, steps: int = 300, seed: int = 0) -> Inverter:
    """Fit the surrogates to latents and their pictures (N, C, H, W), any units."""
    if latents.shape != originals.shape or latents.ndim != 4 or len(latents) < FEWEST:
        raise ShapeMismatch(f"latents {latents.shape} with pictures {originals.shape}")
    aside = np.arange(len(latents)) % SET_ASIDE == SET_ASIDE - 1
    fitted, held = (latents[~aside], originals[~aside]), (latents[aside], originals[aside])
    found: dict[str, Inverse] = {
        name: _best([fit(*fitted, penalty) for penalty in PENALTIES], held)
        for name, fit in (("frequency", _by_frequency), ("ridge", _ridge))
    }
    if steps:
        found["network"] = _network(*fitted, found["frequency"], steps, seed)
    errors = {name: _error(inverse, held) for name, inverse in found.items()}
    best = min(errors, key=errors.__getitem__)
    return Inverter(best, found[best], errors)


def _error(inverse: Inverse, pairs: tuple[Array, Array]) -> float:
    return float(np.square(inverse(pairs[0]).astype(np.float64) - pairs[1]).mean())


def _best(candidates: list[Inverse], pairs: tuple[Array, Array]) -> Inverse:
    return min(candidates, key=lambda inverse: _error(inverse, pairs))


def _by_frequency(latents: Array, originals: Array, penalty: float) -> Inverse:
    """For each frequency x = m_x + W (z - m_z) over the channels: (H, W, C, C)."""
    z, x = (cosines(torch.from_numpy(each).double()) for each in (latents, originals))
    centres = z.mean(0), x.mean(0)
    seen, wanted = ((each - centre).permute(2, 3, 0, 1) for each, centre in zip((z, x), centres, strict=True))
    second = seen.mT @ seen
    size = penalty * second.diagonal(dim1=2, dim2=3).mean(-1) + 1e-9
    second = second + size[..., None, None] / len(latents) ** 0.5 * torch.eye(z.shape[1], dtype=z.dtype)
    weights = torch.linalg.solve(second, seen.mT @ wanted)

    def inverse(given: Array) -> Array:
        found = cosines(torch.from_numpy(given).double()) - centres[0]
        answer = (found.permute(2, 3, 0, 1) @ weights).permute(2, 3, 0, 1) + centres[1]
        return pictures(answer).float().numpy()

    return inverse


def _ridge(latents: Array, originals: Array, penalty: float) -> Inverse:
    """In the dual: as many unknowns as pairs."""
    z, x = (torch.from_numpy(each.reshape(len(each), -1)).double() for each in (latents, originals))
    centres = z.mean(0), x.mean(0)
    z, x = z - centres[0], x - centres[1]
    kernel = z @ z.T
    size = penalty * kernel.diagonal().mean()
    dual = torch.linalg.solve(kernel + size * torch.eye(len(z), dtype=z.dtype), x)

    def inverse(given: Array) -> Array:
        rows = torch.from_numpy(given.reshape(len(given), -1)).double() - centres[0]
        found: Array = (rows @ z.T @ dual + centres[1]).float().numpy().reshape(given.shape)
        return found

    return inverse


class _Corrector(nn.Module):
    """Residual convolutions with growing reach; starts as the estimate that it corrects."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2 * channels, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=reach, dilation=reach),
                nn.SiLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            )
            for reach in BLOCKS
        )
        self.leave = nn.Conv2d(WIDTH, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, latent: Tensor, estimate: Tensor) -> Tensor:
        h = self.enter(torch.cat([latent, estimate], dim=1))
        for block in self.blocks:
            h = h + block(h)
        found: Tensor = estimate + self.leave(nn.functional.silu(h))
        return found


def _network(latents: Array, originals: Array, first: Inverse, steps: int, seed: int) -> Inverse:
    z, guess, x = (torch.from_numpy(each) for each in (latents, first(latents), originals))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Corrector(z.shape[1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(z), (BATCH,), generator=generator)
            loss = (network(z[rows], guess[rows]) - x[rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            fall.step()
    network.requires_grad_(requires_grad=False)

    def inverse(given: Array) -> Array:
        found: Array = network(torch.from_numpy(given), torch.from_numpy(first(given))).numpy()
        return found

    return inverse


WIDTHS = (0.3, 1.0, 3.0)
"""Of the kernel, in deviations of the latents."""
MOST_POINTS = 1_500
"""Pairs of points that are fitted to; the time grows with their cube."""


def fit_point_inverter(latents: Array, originals: Array) -> Inverter:
    """Kernel ridge regression of points on their latents, each (N, D): width and penalty by pairs that are set
    aside.
    """
    if latents.shape != originals.shape or latents.ndim != 2 or len(latents) < FEWEST:
        raise ShapeMismatch(f"latents {latents.shape} with points {originals.shape}")
    latents, originals = latents[:MOST_POINTS], originals[:MOST_POINTS]
    aside = np.arange(len(latents)) % SET_ASIDE == SET_ASIDE - 1
    fitted, held = (latents[~aside], originals[~aside]), (latents[aside], originals[aside])
    candidates = [
        _kernel_ridge(*fitted, width, penalty) for width in WIDTHS for penalty in (1e-6, 1e-3, 1e-1)
    ]
    best = _best(candidates, held)
    return Inverter("kernel ridge", best, {"kernel ridge": _error(best, held)})


def _kernel_ridge(latents: Array, originals: Array, width: float, penalty: float) -> Inverse:
    scale = width * float(latents.std())
    own = torch.from_numpy(latents).double() / scale
    x = torch.from_numpy(originals).double()
    centre = x.mean(0)

    def kernel(given: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(given, own).square() / 2)

    eye = torch.eye(len(own), dtype=own.dtype)
    dual = torch.linalg.solve(kernel(own) + penalty * eye, x - centre)

    def inverse(given: Array) -> Array:
        found: Array = (kernel(torch.from_numpy(given).double() / scale) @ dual + centre).float().numpy()
        return found

    return inverse


def correlation_matrix(latents: Numbers, originals: Numbers) -> NDArray[np.float64]:
    """Correlation of the numbers of each latent with those of each sample, (N, M); 0 for one that is constant."""
    if latents.shape[1:] != originals.shape[1:]:
        raise ShapeMismatch(f"latents {latents.shape} beside samples {originals.shape}")
    flat = [each.reshape(len(each), -1).astype(np.float64) for each in (latents, originals)]
    flat = [each - each.mean(axis=1, keepdims=True) for each in flat]
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), TINY) for each in flat]
    found: NDArray[np.float64] = unit[0] @ unit[1].T
    return found


def first_by_correlation(found: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each latent correlates most with its own sample, of (N, N); a tie counts against it."""
    own = np.diagonal(found)
    hits: NDArray[np.bool_] = (found >= own[:, None]).sum(axis=1) == 1
    return hits


def scores(
    residuals: Numbers, candidates: Numbers, population: Numbers, pictures: int
) -> NDArray[np.float64]:
    """The score of each candidate for each published histogram."""
    if not candidates.shape[-1] == population.shape[-1] == residuals.shape[-1]:
        raise ShapeMismatch(
            f"cells of {residuals.shape}, {candidates.shape} and {population.shape} do not agree"
        )
    steps = (candidates - population).astype(np.float64) / pictures
    found: NDArray[np.float64] = residuals @ steps.T - np.square(steps).sum(1) / 2
    return found


def area(inside: Numbers, outside: Numbers) -> float:
    """Area under the curve of hits over false alarms: how often a member's score is above a stranger's, ties half."""
    if 0 in (inside.size, outside.size):
        raise ShapeMismatch("an area needs scores of members and of strangers")
    ordered = np.sort(outside.ravel())
    below, upto = (np.searchsorted(ordered, inside.ravel(), side=side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / ordered.size)


def first(found: Numbers, own: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether the candidate `own` (R,) has the best score of all in each row of (R, N); a tie counts against it."""
    mine = np.take_along_axis(found, own[:, None], axis=1)
    hits: NDArray[np.bool_] = (found >= mine).sum(axis=1) == 1
    return hits

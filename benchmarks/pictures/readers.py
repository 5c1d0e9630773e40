"""Somebody who has the latents of a study of slices, and reads the slices from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pictures.slices import SLAB, STUDY, Array, mean_of_studies, pictures_of, slices_of, softened
from ddib_fed import Model, Settings, datasets, metrics
from ddib_fed.lab.report import fit_inverter

AT = 6  # place of the known slice in its slab


class Reader:
    """Somebody who has the latents of a study."""

    def __init__(self, model: Model, settings: Settings, *, shared: bool) -> None:
        self.model, self.settings, self.shared = model, settings, shared
        self.sigma = model.manifest.soften_sigma
        self.slices = slices_of(model.domain)
        self.nearest = np.arange(STUDY) // SLAB * SLAB + AT
        self.unknown = np.arange(STUDY) % SLAB != AT
        self.x = model.units(self.slices)
        clusters = datasets.clusters_of(model.domain)[self.unknown]
        self.drawn = metrics.resample(len(clusters), clusters)

    def latents(self, x: Array, seed: int) -> Array:
        u = softened(self.model, x, seed, shared=self.shared)
        return self.model.integrate(u, self.settings, sigma=self.sigma)

    def without_model(self, latents: list[Array], others: Array, steps: int) -> dict[str, Any]:
        seen, rows = self.latents(others, 100), np.arange(len(others))
        # Sheets go through the slabs in turn: that of the same slab which comes first in the study is the known one.
        slabs = len(datasets.slabs_of(datasets.shipped_domain(self.model.domain).side, "train"))
        first = rows // STUDY * STUDY + rows % STUDY % slabs

        def read(see: Callable[[Array, NDArray[Any]], Array], beside: float = 0.0) -> Any:
            surrogate = fit_inverter(
                see(seen, first), others - np.float32(beside) * others[first], steps=steps
            )
            known = np.float32(beside) * self.x[self.nearest]
            return self.figure([surrogate.inverse(see(z, self.nearest)) + known for z in latents])

        return {
            "latent": read(lambda z, _: z),
            "mean": read(lambda z, _: z - mean_of_studies(z)),
            "guess": self.figure([self.x[self.nearest]]),
            "known": read(lambda z, at: z - z[at], beside=1.0),
        }

    def with_model(self, latents: list[Array]) -> Iterator[tuple[str, Any]]:
        alpha, level = np.float32(1.0 / math.hypot(1.0, self.sigma)), -math.log(self.sigma)
        soft = [self.model.integrate(z, self.settings, sigma=self.sigma, back=True) for z in latents]
        # x0 = alpha u - sigma v of v = alpha eps - sigma x0.
        plain = [alpha * (u - np.float32(self.sigma) * self.model.velocity(u, level)) for u in soft]
        study: list[Array] = [
            u / alpha - mean_of_studies(u / alpha - x) for u, x in zip(soft, plain, strict=True)
        ]
        known = [u / alpha - (u / alpha - self.x)[self.nearest] for u in soft]
        figures: list[Any] = []
        for name, estimates in (("model", plain), ("model, study", study), ("model, known", known)):
            figures.append(self.figure(estimates))
            yield name, max(figures, key=lambda one: float(one["value"]))

    def figure(self, estimates: list[Array]) -> Any:
        """Return the dB of what is read of the slices that are not known, the mean of all draws."""
        read = [metrics.psnr(pictures_of(self.model, x), self.slices) for x in estimates]
        return self.drawn.mean(np.mean(read, axis=0)[self.unknown])

"""The six models of points that ship: how far what they draw is from their domain, and how white their latents are.

    python -m benchmarks.points.models      3 minutes of one core

The sliced Wasserstein distance is the mean over five draws of 10,000 points, with the least and the largest.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.command import Rows, Run, command
from ddib_fed import Model, datasets
from ddib_fed.metrics import POOL_SEED, domain_sliced_w2_floor, sliced_w2

POINTS, DRAWS = 10_000, 5


def measure(run: Run) -> Rows:
    """Measure each model."""
    count, draws, domains = run.pick(
        smoke=(200, 1, [*datasets.DOMAINS][:1]), long=(POINTS, DRAWS, [*datasets.DOMAINS])
    )
    for domain in domains:
        model = Model.open(domain, threads=1)
        latent = model.integrate(datasets.sample(domain, count, 0))
        distances = []
        for seed in range(draws):
            noise = np.random.default_rng(seed).standard_normal((count, 2)).astype(np.float32)
            drawn = model.integrate(noise, back=True)
            distances.append(sliced_w2(drawn, datasets.draw(domain, count, POOL_SEED, step=1 + seed)))
        yield {
            "domain": domain,
            "sliced_w2": {"value": float(np.mean(distances)), "low": min(distances), "high": max(distances)},
            "sliced_w2_floor": domain_sliced_w2_floor(domain, count),
            "latent_std": float(latent.std()),
            "refused": model.refusals(latent) != [""],
        }


if __name__ == "__main__":
    sys.exit(command(measure, "points/models"))

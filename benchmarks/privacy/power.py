"""The power of the latent gate: what share of latents that are none it refuses, and how many honest ones.

    python -m benchmarks.privacy.power      15 minutes of one core

Pictures: attacks on each test picture of a shipped domain, which neither training nor the bounds have seen, judged by
whoever encodes (with gate.json, and by encoding again) and by whoever receives the latent. Points: sets of 1 to 1,024
points, as a user might choose them. Intervals are over clusters of overlapping pictures, and over sets of points.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.directed import from_bytes
from benchmarks.command import Rows, Run, command
from benchmarks.privacy.attacks import chosen, mixed, permuted, with_ranks_of, with_window
from ddib_fed import Model, Settings, datasets, metrics

PICTURES = ("satellite", "relief", "brain-t1", "brain-t2")
COUNTS, SHARES = (24, 48, 12, 8), (0.3, 0.7)
"""Evaluations of encoding, the first of which attacks are said to be made with; shares of the picture in a latent."""
SIZES, SETS, POOL = (1, 8, 64, 256, 1024), 40, 16_384
"""Points of a set, sets of a kind, and points of a domain that they are drawn from."""
WAYS = ("fair", "half", "near")
Latents = NDArray[np.float32]
Judged = Iterator[tuple[str, list[bool], list[bool]]]


def measure(run: Run) -> Rows:
    """Measure all domains; a row is of all of them together."""
    answers: dict[str, list[tuple[list[str], list[bool], list[bool]]]] = {}
    for domain in run.pick(smoke=PICTURES[:1], long=PICTURES):
        few, counts = run.pick(smoke=(2, (8,)), long=(None, COUNTS))
        pictures = from_bytes(datasets.shipped_bytes(domain, ["test"])[0][:few])
        labels = [f"{domain} {cluster}" for cluster in datasets.clusters_of(domain)[:few]]
        for name, known, alone in judged_pictures(Model.open(domain, threads=1), pictures, counts):
            answers.setdefault(name, []).append((labels, known, alone))
    for domain in run.pick(smoke=datasets.DOMAINS[:1], long=datasets.DOMAINS):
        sizes, sets = run.pick(smoke=((8,), 2), long=(SIZES, SETS))
        for name, known, alone in judged_points(Model.open(domain, threads=1), sizes, sets):
            answers.setdefault(name, []).append(([f"{domain} {n}" for n in range(len(known))], known, alone))
    for name, parts in answers.items():
        groups, source, target = (np.concatenate(side) for side in zip(*parts, strict=True))
        drawn = metrics.resample(len(groups), groups)
        yield {"name": name, "count": len(groups), "source": drawn.mean(source), "target": drawn.mean(target)}


def judged_pictures(model: Model, pictures: Latents, counts: Sequence[int]) -> Judged:
    """Yield each attack's name, and which of its latents the gates of a source and of a target refuse."""
    plain, rng, settings = model.units(pictures), np.random.default_rng(7), Settings(evaluations=counts[0])
    sigma = model.manifest.soften_sigma
    states = mixed(plain, rng.standard_normal(plain.shape), 1.0 / math.hypot(1.0, sigma))
    noise = rng.standard_normal(plain.shape).astype(np.float32)
    for count in counts:
        honest = Settings(evaluations=count)
        latents = model.integrate(states, honest, sigma=sigma)
        yield f"honest latents, {count} evaluations", *judged(model, latents, states, honest)
    latents = model.integrate(states, settings, sigma=sigma)
    for name, attack in {
        **{f"noise and picture, a = {share:g}": mixed(plain, noise, share) for share in SHARES},
        **{f"latent and picture, a = {share:g}": mixed(plain, latents, share) for share in SHARES},
        "pixels in another order": permuted(plain, rng),
        "pixels in another order, ranks made normal": with_ranks_of(permuted(plain, rng), noise),
        "a quarter of the latent is the picture": with_window(latents, plain),
        "noise, no latent of any picture": noise,
        "the latent of another picture": np.roll(latents, 1, axis=0),
    }.items():
        yield name, *judged(model, attack, states, settings)


def judged_points(model: Model, sizes: Sequence[int], count: int) -> Judged:
    """Yield the same of sets of points of each size."""
    x, rng = model.units(datasets.draw(model.domain, POOL, 90)), np.random.default_rng(3)
    settings, noise = Settings(evaluations=12), rng.standard_normal(x.shape, np.float32)
    latents = model.integrate(x, settings)
    for size in sizes:
        sets, words = [*chosen(x, size, count, rng)], f"{size} point{'s' * (size > 1)}"
        kinds = {f"honest sets, {way}, 12 evaluations": (latents, sets[n::3]) for n, way in enumerate(WAYS)}
        kinds |= {"raw data": (x, sets[::3]), "noise, no latent of any point": (noise, sets[::3])}
        for name, (attack, rows_of) in kinds.items():
            answers = [judged(model, attack[rows], x[rows], settings) for rows in rows_of]
            yield f"{name}, {words}", [known[0] for known, _ in answers], [alone[0] for _, alone in answers]


def judged(
    model: Model, latents: Latents, states: Latents, settings: Settings
) -> tuple[list[bool], list[bool]]:
    """Return which of the items the gate of the source refuses, and which that of the target."""
    known, alone = model.refusals(latents, settings, states=states), model.refusals(latents, settings)
    return [*map(bool, known)], [*map(bool, alone)]


if __name__ == "__main__":
    sys.exit(command(measure, "privacy/power"))

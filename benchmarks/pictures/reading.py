"""What the latents of a study's slices reveal, with one draw of softening noise, and with one each.

    python -m benchmarks.pictures.reading      15 minutes of one core

In dB, the mean over eight draws, of the study of benchmarks.pictures.flicker. Without the model somebody has 480 pairs
of other studies, sheets of the training slabs, and fits the surrogates of `ddib privacy report` to
    latent          z, which becomes x
    mean            z less the mean of its study's latents, which becomes x
    known           z less that of a known slice of the study, which becomes x less that slice
and with the source's model takes u, the softened slice that z is the latent of, and
    model           one estimate of x from u by the network
    model, study    u less the noise, estimated by the mean of what the network takes for noise in all slices
    model, known    u less the noise of a known slice; all without what helps less than the line before
The seventh slice of each slab is known (`guess`: it is taken for the others as it is), and the others are read.
"""

from __future__ import annotations

import sys

from benchmarks.calibration.variants import LEGS
from benchmarks.command import Rows, Run, command
from benchmarks.pictures.readers import Reader
from benchmarks.pictures.slices import PAIRS, slices_of
from ddib_fed import Model, Settings

DRAWS, KNOWN_PAIRS, STEPS = 8, 480, 200
"""Draws, pairs of other studies, and steps of the surrogate's training."""


def measure(run: Run) -> Rows:
    """Read the study of each contrast."""
    draws, known, steps, settings = run.pick(
        smoke=(1, 48, 0, Settings(evaluations=4)), long=(DRAWS, KNOWN_PAIRS, STEPS, LEGS)
    )
    for name, _ in PAIRS[: run.pick(smoke=1, long=2)]:
        for shared in (False, True)[run.pick(smoke=1, long=0) :]:
            reader = Reader(Model.open(name, threads=1), settings, shared=shared)
            latents = [reader.latents(reader.x, seed) for seed in range(draws)]
            others = reader.model.units(slices_of(name, known, run.pick(smoke="test", long="train")))
            read = {**reader.without_model(latents, others, steps), **dict(reader.with_model(latents))}
            yield {
                "source": name,
                "shared": shared,
                "draws": draws,
                "evaluations": settings.evaluations,
                **read,
            }


if __name__ == "__main__":
    sys.exit(command(measure, "pictures/reading"))

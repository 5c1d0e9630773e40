"""Tunes a bundle: data, references, the search for each leg and number, and steps.json with the measured errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion.denoiser import Condition
from ddib_fed.diffusion.levels.learned import LearnedSteps, Stage
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.bundle import Bundle, load_bundle, put_beside
from ddib_fed.models.catalogue import STEPS_FILE
from ddib_fed.models.tuned import (
    MAX_LEARNED,
    LearnedWeights,
    Tuned,
    TunedLeg,
    corrections_text,
    read_corrections,
)
from ddib_fed.training.tuning.corrections import CorrectionEffort, corrected
from ddib_fed.training.tuning.legs import (
    YARDSTICK,
    Rows,
    TuningLeg,
    errors,
    reference,
    softened,
    tuning_leg,
)
from ddib_fed.training.tuning.samples import SEED, Counts, own_samples
from ddib_fed.training.tuning.search import Effort, learn
from ddib_fed.training.tuning.weights import WeightEffort, weighted

Say = Callable[[str, int, int], None]
"""Told (what is being done, done, in all)."""
POINTS = Counts(fit=24_000, choose=2_000, held_out=4_000), Effort((3, 4, 5), 400, 40, 240, 3)
PICTURES = Counts(fit=24, choose=8, held_out=12), Effort((2, 3, 4), 2, 10, 30, 2, 0.05)
CORRECTIONS = CorrectionEffort()
WEIGHTS = WeightEffort()
REFERENCE = 128
"""Evaluations of a reference leg."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is tuned."""

    evaluations: tuple[int, ...]
    data: Path | None = None
    soften: float | None = None
    seed: int = 0
    effort: float = 1.0
    stages: tuple[Stage, ...] = ("encode", "decode")
    corrections: bool = True
    keep_levels: bool = False

    def times(self, number: int) -> int:
        return max(1, round(number * self.effort))


def tune_bundle(folder: Path, wanted: Wanted, *, command: str = "", device: str = "cpu", say: Say) -> Tuned:
    """Learn steps of the bundle in a folder and write them beside its weights; its digest does not change."""
    bundle = load_bundle(folder)
    legs = tune(bundle, wanted, device=device, say=say)
    return put_legs(folder, legs, command=command)


def tune(bundle: Bundle, wanted: Wanted, *, device: str = "cpu", say: Say) -> tuple[TunedLeg, ...]:
    """The learned steps of both directions, with what they were measured to do; arguments as `tune_bundle`."""
    for number in wanted.evaluations:
        if not 2 <= number <= MAX_LEARNED:
            raise SettingsInvalid(
                f"{number} evaluations cannot be learned", hint=f"2 to {MAX_LEARNED}; above, --grid default"
            )
    model = DomainModel(replace(bundle, tuned=None), device=device)
    counts, effort = PICTURES if model.is_picture else POINTS
    effort = replace(effort, looks=wanted.times(effort.looks), iterations=wanted.times(effort.iterations))
    corrections = replace(
        CORRECTIONS, fits=wanted.times(CORRECTIONS.fits), rolls=wanted.times(CORRECTIONS.rolls)
    )
    weights = replace(WEIGHTS, pictures=wanted.times(WEIGHTS.pictures))
    if model.is_picture and wanted.effort > 1.0:
        counts = replace(counts, fit=wanted.times(counts.fit), choose=wanted.times(counts.choose))
    found: list[TunedLeg] = []
    for leg in _legs(model, wanted, counts, say):
        known: list[LearnedSteps] = []
        # The most evaluations first: their grid starts a candidate of the fewer.
        for number in sorted(set(wanted.evaluations), reverse=True):
            tell = partial(say, f"{leg.stage} in {number}")
            kept = _kept(bundle, leg, number) if wanted.keep_levels else None
            if kept is None:
                steps = learn(leg, number, effort, seed=wanted.seed, known=known, tell=tell)
            else:
                steps = replace(kept, corrections=None, weights=None)
            known.append(steps)
            if wanted.corrections and model.is_picture:
                tell = partial(say, f"weights of {leg.stage} in {number}")
                steps = weighted(leg, steps, weights, seed=wanted.seed, tell=tell)
            elif wanted.corrections:
                tell = partial(say, f"corrections of {leg.stage} in {number}")
                moved = kept is not None and kept.corrections is not None
                steps = corrected(leg, steps, corrections, moved=moved, seed=wanted.seed, tell=tell)
            found.append(measured(leg, steps))
    return tuple(found)


def _kept(bundle: Bundle, leg: TuningLeg, number: int) -> LearnedSteps | None:
    there = () if bundle.tuned is None else bundle.tuned.legs
    wanted = (leg.stage, leg.sigma, number)
    return next((each.steps() for each in there if each.key == wanted), None)


def measured(leg: TuningLeg, steps: LearnedSteps) -> TunedLeg:
    """Steps with their figures on the held-out rows, as they are after they were stored."""
    text = None if steps.corrections is None else corrections_text(steps.corrections)
    if text is not None:
        steps = replace(steps, corrections=read_corrections(text, steps.evaluations))
    rows = leg.held_out
    default = replace(YARDSTICK, evaluations=steps.evaluations)
    return TunedLeg(
        stage=steps.stage,
        evaluations=steps.evaluations,
        sigma=steps.sigma,
        order=steps.order,
        coordinates=steps.coordinates,
        lams=steps.lams,
        held_out=len(rows),
        error=errors(leg.learned_end(steps, rows), rows.end),
        default_error=errors(leg.default_end(default, rows), rows.end),
        yardstick=YARDSTICK.evaluations,
        yardstick_error=errors(leg.default_end(YARDSTICK, rows), rows.end),
        reference_gap=leg.reference_gap,
        corrections=text,
        weights=None if steps.weights is None else LearnedWeights.of(steps.weights),
    )


def put_legs(folder: Path, legs: Sequence[TunedLeg], *, command: str = "") -> Tuned:
    """Write steps into the bundle in `folder`, in the place of those of the same direction, softening and number."""
    bundle = load_bundle(folder)
    tuned = bundle.tuned or Tuned(weights_sha256=bundle.manifest.weights_sha256)
    tuned = tuned.with_legs(tuple(legs), command)
    put_beside(folder, STEPS_FILE, tuned.text())
    return tuned


def _legs(model: DomainModel, wanted: Wanted, counts: Counts, say: Say) -> list[TuningLeg]:
    sigma = model.sigma(wanted.soften)
    data = [model.tensor(model.normalise(each)) for each in own_samples(model.manifest, wanted.data, counts)]
    soft = [softened(x, sigma, wanted.seed + SEED - 1 - i) for i, x in enumerate(data)]
    legs = []
    if "encode" in wanted.stages:
        legs.append(_leg(model, "encode", soft, sigma, wanted, say))
    if "decode" in wanted.stages:
        latents = _latents(model, soft, sigma, wanted, legs) if model.is_picture else None
        legs.append(_leg(model, "decode", _noise(soft, latents, wanted.seed), 0.0, wanted, say))
    return legs


def _leg(
    model: DomainModel, stage: Stage, starts: Sequence[Tensor], sigma: float, wanted: Wanted, say: Say
) -> TuningLeg:
    return tuning_leg(
        model,
        stage,
        (starts[0], starts[1], starts[2]),
        _conditions(model, starts, wanted.seed),
        sigma=sigma,
        evaluations=REFERENCE,
        tell=partial(say, f"reference of {stage}"),
    )


def _latents(
    model: DomainModel, soft: Sequence[Tensor], sigma: float, wanted: Wanted, legs: Sequence[TuningLeg]
) -> list[Tensor]:
    """Where the reference of encoding takes softened data: the ends of that leg, where it is there."""
    if legs:
        return [rows.end for rows in (legs[0].fit, legs[0].choose, legs[0].held_out)]
    conds = _conditions(model, soft, wanted.seed)
    return [
        reference(model, "encode", Rows(x, cond, x), sigma, REFERENCE)
        for x, cond in zip(soft, conds, strict=True)
    ]


def _noise(like: Sequence[Tensor], latents: Sequence[Tensor] | None, seed: int) -> list[Tensor]:
    """Starts of decoding: N(0, I), and in every other row a latent where there are some."""
    starts = []
    for i, x in enumerate(like):
        start = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + SEED + i)).to(x)
        if latents is not None:
            start[::2] = latents[i][::2]
        starts.append(start)
    return starts


def _conditions(
    model: DomainModel, starts: Sequence[Tensor], seed: int
) -> tuple[Condition, Condition, Condition]:
    """A random class for each row, where the network has classes."""
    classes = model.manifest.num_classes
    if classes is None:
        return None, None, None
    drawn = np.random.default_rng(seed)
    first, second, third = (
        model.condition(drawn.integers(0, classes, len(x)).tolist(), len(x)) for x in starts
    )
    return first, second, third

"""`ddib model tune`: learned steps of a finished model.

The n steps in lambda are shares softmax(u) of the way, learned by gradients through the solver (LD3, arXiv 2405.15506):

minimise over u, order and coordinates    log mean_i e_i + mean_i log e_i,    e_i = |student_i - reference_i|

Rows to learn from, to choose by, and to measure the published errors with are three sets.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed import Model, Settings
from ddib_fed.errors import InputError, NotFinite, SettingsInvalid
from ddib_fed.metrics import resample

Told = Callable[[int, int], None]  # told (done, in all)
Floats = NDArray[np.float32]
Array = TypeVar("Array", Tensor, Floats)
Stage = Literal["encode", "decode"]
YARDSTICK = Settings()  # what learned steps are held against: the default solver, grid and number
REFERENCE = 128  # evaluations of a reference leg
GRIDS = ("default", "uniform-lambda")
TINY = 1e-7  # added to distances: float32 is no nearer
FEWEST = 12
MOST_LEARNED = 64  # with more evaluations the default grid is as good as exact
LEAST_STEP = 1e-4  # in lambda: below, the weights of an order-5 step lose all digits
SEED = 12_107


class Effort(NamedTuple):
    """How much is spent on one leg and number: samples of the three sets, orders that are tried, samples of an
    iteration, iterations of each candidate and of the best, and how many candidates are tried.
    """

    fit: int
    choose: int
    held_out: int
    orders: tuple[int, ...]
    batch: int
    looks: int
    iterations: int
    tried: int
    rate: float = 0.03


POINTS = Effort(24_000, 2_000, 4_000, (3, 4, 5), 400, 40, 240, 3)
PICTURES = Effort(24, 8, 12, (2, 3, 4), 2, 10, 30, 2, 0.05)


class Steps(NamedTuple):
    lams: tuple[float, ...]  # falling: from data to noise, also of decoding
    order: int = 3
    whitened: bool = False


class Rows(NamedTuple):
    """Samples of one set: where a leg starts, of what class, and where its reference ends."""

    x: Tensor
    labels: NDArray[np.int64] | None
    end: Tensor

    def chosen(self, which: Tensor) -> "Rows":
        labels = None if self.labels is None else self.labels[which.numpy()]
        return Rows(self.x[which], labels, self.end[which])


def tune(
    model: Model,
    evaluations: Sequence[int],
    *,
    data: Path | None = None,
    soften_sigma: float | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Any:
    """Learn where the solver steps, so that fewer evaluations are as exact; write steps.json and return it.

    `soften_sigma` is of the pictures that are encoded, None for the model's own.
    """
    model.own_folder()
    counts = sorted(set(evaluations))
    for number in counts:
        if not 2 <= number <= MOST_LEARNED:
            hint = f"2 to {MOST_LEARNED}; above, --set grid=default"
            raise SettingsInvalid(f"{number} evaluations cannot be learned", hint=hint)
    pictures = model.manifest.sample_kind != "point"
    effort = PICTURES if pictures else POINTS
    sigma = model.manifest.soften_sigma if soften_sigma is None else soften_sigma
    with model.threads():
        starts = [torch.from_numpy(model.units(rows)) for rows in sets(model, data, effort)]
        starts = [softened(x, sigma, noise(x, seed + SEED - 1 - i)) for i, x in enumerate(starts)]
        legs: list[dict[str, Any]] = []
        stages: tuple[Stage, ...] = ("encode", "decode")
        for stage in stages:
            leg = TuningLeg(model, stage, starts, sigma, seed, partial(on_progress, f"reference of {stage}"))
            learned: list[Steps] = []
            # The most evaluations first: their grid starts a candidate of the fewer.
            for number in reversed(counts):
                tell = partial(on_progress, f"{stage} in {number}")
                learned.append(learn(leg, number, effort, seed, learned, tell))
                legs.append(leg.measured(learned[-1]))
            # Decoding is learned from noise, and in every other row of pictures from a latent: what a node decodes.
            starts = [noise(rows.x, seed + SEED + i) for i, rows in enumerate(leg.sets)]
            sigma = 0.0
            if pictures:
                for start, rows in zip(starts, leg.sets, strict=True):
                    start[::2] = rows.end[::2]
    words = f"ddib model tune MODEL --evaluations {' '.join(map(str, counts))}"
    words += "" if soften_sigma is None else f" --soften-sigma {soften_sigma:g}"
    words += f"{' --data PATH' if data else ''}{f' --seed {seed}' if seed else ''}"
    return model.put_steps(legs, command=words)


def sets(model: Model, data: Path | None, effort: Effort) -> tuple[Floats, Floats, Floats]:
    """Return samples to learn from, to choose with, and to measure with; held-out ones first go to the last two."""
    total = effort.fit + effort.choose + effort.held_out
    samples = model.data(data, train=total, held_out=effort.choose + effort.held_out)
    every = samples.mixed()
    if len(every) < FEWEST:
        problem = f"{samples.name} has {len(every)} samples; at least {FEWEST} are needed"
        raise InputError(problem, hint="give more")
    share = min(1.0, len(every) / total)
    held_out, choose, fit = (max(2, int(share * n)) for n in (effort.held_out, effort.choose, effort.fit))
    return every[choose + held_out :][:fit], every[held_out : held_out + choose], every[:held_out]


def softened(x: Array, sigma: float, noise: Array) -> Array:
    """Return alpha (x + sigma noise), alpha = 1 / sqrt(1 + sigma^2), of arrays or of tensors."""
    alpha = 1.0 / math.hypot(1.0, sigma)
    return alpha * x + alpha * sigma * noise


def noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


class TuningLeg:
    """A leg that is to be tuned, with its references computed."""

    def __init__(
        self, model: Model, stage: Stage, starts: Sequence[Tensor], sigma: float, seed: int, tell: Told
    ) -> None:
        self.model, self.stage, self.sigma = model, stage, sigma
        drawn, classes = np.random.default_rng(seed), model.manifest.num_classes
        self.sets: list[Rows] = []
        for done, x in enumerate(starts):
            tell(done, len(starts) + 1)
            rows = Rows(x, None if classes is None else drawn.integers(0, classes, len(x)), x)
            rows = rows._replace(end=self._reference(rows, REFERENCE))
            if not bool(torch.isfinite(rows.end).all()):
                problem = f"{model.manifest.name}: the reference of {stage} is not finite"
                raise NotFinite(problem, hint="train the model again")
            self.sets.append(rows)
        self.fit, self.choose, self.held_out = self.sets
        half = self._reference(self.choose, REFERENCE // 2)
        self.reference_gap = float(distances(half, self.choose.end).mean())
        tell(len(starts) + 1, len(starts) + 1)

    def grid(self, name: str, evaluations: int) -> tuple[float, ...]:
        return self.model.levels(Settings(grid=name, evaluations=evaluations), sigma=self.sigma)

    def _reference(self, rows: Rows, evaluations: int) -> Tensor:
        """Take rows many small steps: even in lambda in a spectral network's frame, else on the default grid."""
        whitened = self.model.is_spectral
        return self.end(Steps(self.grid(GRIDS[whitened], evaluations), 3, whitened), rows)

    def end(self, steps: Steps, rows: Rows) -> Tensor:
        with torch.no_grad():
            return self.roll(steps, rows, torch.tensor(steps.lams, dtype=torch.float64))

    def roll(self, steps: Steps, rows: Rows, lams: Tensor) -> Tensor:
        """Return where rows end over the grid lams (n + 1,), differentiable in it."""
        lams = lams if self.stage == "encode" else lams.flip(0)
        labels = None if rows.labels is None else rows.labels.tolist()
        at = rows.x
        walk = self.model.walk(rows.x, lams, order=steps.order, whitened=steps.whitened, labels=labels)
        for state, _ in walk:
            at = state
        return at.cpu()

    def measured(self, steps: Steps) -> dict[str, Any]:
        rows, evaluations = self.held_out, len(steps.lams) - 1
        default, yardstick = (
            errors(self.end(Steps(self.grid("default", count)), rows), rows.end)
            for count in (evaluations, YARDSTICK.evaluations)
        )
        return {
            "stage": self.stage,
            "evaluations": evaluations,
            "sigma": self.sigma,
            "order": steps.order,
            "coordinates": "spectrum" if steps.whitened else "angle",
            "lams": steps.lams,
            "held_out": len(rows.x),
            "error": errors(self.end(steps, rows), rows.end),
            "default_error": default,
            "yardstick": YARDSTICK.evaluations,
            "yardstick_error": yardstick,
            "reference_gap": self.reference_gap,
        }


def distances(found: Tensor, end: Tensor) -> Tensor:
    """Return, of points the Euclidean distance, of pictures the root mean square difference; (N,)."""
    squares = (found.double() - end.double()).flatten(1).square()
    return (squares.sum(1) if found.ndim == 2 else squares.mean(1)).sqrt()


def errors(found: Tensor, end: Tensor) -> dict[str, float]:
    """Return statistics of the distances, with an interval over samples. Not finite counts as the greatest error."""
    apart: NDArray[np.float64] = distances(found, end).numpy()
    apart = np.nan_to_num(apart, nan=1e6, posinf=1e6).clip(max=1e6)
    mean = resample(len(apart)).mean(apart)
    median, p99 = np.quantile(apart, [0.5, 0.99])
    return {
        "mean": mean["value"], "low": mean["low"], "high": mean["high"], "median": float(median), "p99": float(p99),
    }  # fmt: skip


def objective(found: Tensor, end: Tensor) -> Tensor:
    """Return the loss of the module's text: a scalar, infinite where something is not finite."""
    apart = distances(found, end) + TINY
    value = apart.mean().log() + apart.log().mean()
    return torch.where(torch.isfinite(value), value, torch.full_like(value, torch.inf))


class Candidate(NamedTuple):
    """Steps with what they reach on the rows that decide; the least is the best."""

    score: float
    steps: Steps


def learn(
    leg: TuningLeg, evaluations: int, effort: Effort, seed: int, known: Sequence[Steps], tell: Told
) -> Steps:
    """Learn the steps of a leg. `known` are steps of more evaluations, of which thinned ones are candidates."""

    def judged(steps: Steps) -> Candidate:
        return Candidate(float(objective(leg.end(steps, leg.choose), leg.choose.end)), steps)

    frames = (True, False) if leg.model.is_spectral else (False,)
    first = [
        judged(Steps(leg.grid(name, evaluations), order, whitened))
        for name, whitened, order in product(GRIDS, frames, effort.orders)
    ]
    for steps in known:
        places = np.linspace(0, len(steps.lams) - 1, evaluations + 1)
        lams = tuple(np.interp(places, np.arange(len(steps.lams)), steps.lams).tolist())
        first.append(judged(steps._replace(lams=lams)))
    first.sort(key=lambda one: one.score)
    # With more evaluations the choice has been made: only the rest of the way is gone again.
    kinds = {one.steps[1:]: one for one in reversed(first)}
    distinct = sorted(kinds.values(), key=lambda one: one.score)
    tried = first[:1] if known else distinct[: effort.tried]
    rest = effort.iterations // 2 if known else effort.iterations
    total, spent = effort.looks * len(tried) + rest, 0
    generator = torch.Generator().manual_seed(seed)

    def descended(start: Candidate, iterations: int) -> Candidate:
        """Run Adam on u; return the best by the rows that decide, which may be the start."""
        nonlocal spent
        lams = torch.tensor(start.steps.lams, dtype=torch.float64)
        ends = start.steps.lams[0], start.steps.lams[-1]
        u = torch.log(lams[:-1] - lams[1:]).requires_grad_()
        optimiser = torch.optim.Adam([u], lr=effort.rate, betas=(0.9, 0.95))
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimiser, max(1, iterations), eta_min=effort.rate / 20
        )
        best = start
        for done in range(1, iterations + 1):
            rows = leg.fit.chosen(torch.randperm(len(leg.fit.x), generator=generator)[: effort.batch])
            with torch.enable_grad():
                loss = objective(leg.roll(start.steps, rows, lams_of(u, *ends)), rows.end)
            optimiser.zero_grad()
            if bool(torch.isfinite(loss)):
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_([u], 1.0)
                optimiser.step()
            fall.step()
            if done % 10 == 0 or done == iterations:
                lams = lams_of(u.detach(), *ends)
                if float((lams[:-1] - lams[1:]).min()) >= LEAST_STEP:
                    outcome = judged(start.steps._replace(lams=tuple(lams.tolist())))
                    best = min(best, outcome, key=lambda one: one.score)
            spent += 1
            tell(spent, total)
        return best

    best = min((descended(one, effort.looks) for one in tried), key=lambda one: one.score)
    return descended(best, rest).steps


def lams_of(u: Tensor, start: float, end: float) -> Tensor:
    """Return the grid (n + 1,) of the numbers u (n,)."""
    fallen = torch.cumsum(torch.softmax(u, 0), 0) * (start - end)
    return torch.cat([u.new_full((1,), start), start - fallen[:-1], u.new_full((1,), end)])

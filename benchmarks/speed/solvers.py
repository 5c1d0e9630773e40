"""Evaluations against reference error: the default and learned steps, on pairs of points and of pictures.

    python -m benchmarks.speed.solvers [--short]

The reference error of a translation is its distance from the translation of the same sample by a converged solver of
the same two models, both legs; of points Euclidean, of pictures the root mean square in the model's units. Samples are
held out: points that neither training nor tuning drew, test pictures of places that neither model was trained on.
Intervals are bootstraps over samples, of pictures over clusters of neighbouring places.

An evaluation of learned steps costs a little more than one of the default, in whitened coordinates:
the CPU time of a translation is measured too, interleaved with that of the default at 48.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.speed.shared.harness import Figure, Form, Report, interleaved, main
from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.datasets.shipped import available, load_shipped, shipped_clusters
from ddib_fed.datasets.synthetic import draw
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.metrics.bootstrap import Interval, resample
from ddib_fed.models.shipped import pretrained
from ddib_fed.training.tune import Rows, distances, reference, softened

PAIRS = (
    ("moons", "checkerboards"),
    ("concentric-rings", "parallel-squares"),
    ("concentric-squares", "parallel-rings"),
    ("satellite", "relief"),
    ("brain-t1", "brain-t2"),
)
EXACT = 96
"""Evaluations of the quality "exact"."""
DEFAULTS = (8, 12, 16, 20, 24, 32, EXACT)
YARDSTICK = SolverSettings()
MOST = 20
"""Evaluations at which the error of the default at 48 is to be reached."""
REFERENCE = 160
COSTED = 1_000, 2
"""Points, and pictures, whose translation is timed."""
SEED = 90_121
"""Of the points and of the softening; training and tuning draw with others."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models, samples of the source and their converged translation."""

    source: DomainModel
    target: DomainModel
    x: Tensor
    clusters: NDArray[np.int64] | None
    end: Tensor

    @property
    def name(self) -> str:
        return f"{self.source.manifest.domain} to {self.target.manifest.domain}"

    @property
    def learned(self) -> tuple[int, ...]:
        both = [model.bundle.tuned for model in (self.source, self.target)]
        found = [set() if each is None else set(each.evaluations) for each in both]
        return tuple(sorted(found[0] & found[1]))

    def errors(self, settings: SolverSettings) -> NDArray[np.float64]:
        return distances(self.translated(self.x, settings), self.end).numpy()

    def translated(self, x: Tensor, settings: SolverSettings) -> Tensor:
        z = _leg(self.source, x, settings, self.source.sigma(), encoding=True)
        return _leg(self.target, z, settings, 0.0, encoding=False)

    def seconds(self, settings: SolverSettings) -> float:
        """CPU time of this thread for translating some of the samples."""
        x = self.x[: COSTED[self.source.is_picture]]
        started = time.thread_time()
        self.translated(x, settings)
        return time.thread_time() - started


def measure(form: Form) -> Report:
    """Evaluations that a translation needs for the reference error of the default at 48."""
    report = Report(
        "Reference error of translations by evaluations of a leg, for the default (unipc of order 3 on the default "
        "grid) and for the steps that `ddib model tune` learned; shipped models, held-out samples."
    )
    for source, target in PAIRS:
        if not all(name not in PICTURES or available(name) for name in (source, target)):
            report.note(f"{source} to {target} was left out: the package with its pictures is not installed.")
            continue
        _measure(open_pair(source, target, form), form, report)
    report.note(
        "Mean, and its 95 % interval over samples. The mean of points is carried by the few that cross gaps of the "
        "support; medians are in the same table."
    )
    return report


PICTURES = ("satellite", "relief", "brain-t1", "brain-t2")


def open_pair(source: str, target: str, form: Form) -> Pair:
    """The models, the samples and the reference."""
    models = DomainModel(pretrained(source)), DomainModel(pretrained(target))
    clusters = None
    if models[0].is_picture:
        every = load_shipped(source).test
        which = np.unique(np.linspace(0, len(every) - 1, form.pick(16, 48)).astype(int))
        samples, clusters = every[which], shipped_clusters(source)[which]
    else:
        samples = draw(source, form.pick(1_000, 10_000), SEED)
    sigma = models[0].sigma()
    x = softened(models[0].tensor(models[0].normalise(samples)), sigma, SEED)
    z = reference(models[0], "encode", Rows(x, None, x), sigma, REFERENCE)
    return Pair(*models, x, clusters, reference(models[1], "decode", Rows(z, None, z), 0.0, REFERENCE))


def _leg(model: DomainModel, x: Tensor, settings: SolverSettings, sigma: float, *, encoding: bool) -> Tensor:
    laid = model.plan(settings, sigma)
    frame = None if laid.learned is None else model.frame()
    solver = laid.encoder(x, frame=frame) if encoding else laid.decoder(x, frame=frame)
    return integrate(solver, model.denoiser())


def _measure(pair: Pair, form: Form, report: Report) -> None:
    drawn = resample(len(pair.x), pair.clusters)
    wanted = pair.errors(YARDSTICK)
    numbers = form.pick((MOST, EXACT), DEFAULTS)
    tried = [("default", SolverSettings(evaluations=n)) for n in numbers]
    tried += [("learned", SolverSettings(evaluations=n, grid="learned")) for n in pair.learned]
    fewest = {"mean": YARDSTICK.evaluations, "median": YARDSTICK.evaluations}
    _add(report, f"{pair.name}, default at {YARDSTICK.evaluations}", wanted, drawn.mean(wanted))
    for kind, settings in tried:
        found = pair.errors(settings)
        _add(report, f"{pair.name}, {kind} at {settings.evaluations}", found, drawn.mean(found))
        for name, statistic in (("mean", np.mean), ("median", np.median)):
            if statistic(found) <= statistic(wanted):
                fewest[name] = min(fewest[name], settings.evaluations)
    what = f"{pair.name}: evaluations for the mean reference error of the default at {YARDSTICK.evaluations}"
    report.bound(what, [float(fewest["mean"])], at_most=MOST)
    report.add(what.replace("mean", "median"), [float(fewest["median"])], "evaluations")
    if MOST in pair.learned:
        _cost(pair, form, report)


def _cost(pair: Pair, form: Form, report: Report) -> None:
    """CPU time of learned steps and of the default, each as a share of the default's at 48."""
    settings = {
        f"learned at {MOST}": SolverSettings(evaluations=MOST, grid="learned"),
        f"default at {MOST}": SolverSettings(evaluations=MOST),
        f"default at {YARDSTICK.evaluations}": YARDSTICK,
    }
    times = interleaved(
        {name: partial(pair.seconds, each) for name, each in settings.items()}, form.pick(3, 9)
    )
    whole = times.pop(f"default at {YARDSTICK.evaluations}")
    for name, values in times.items():
        shares = [value / other for value, other in zip(values, whole, strict=True)]
        report.add(f"{pair.name}, {name}, CPU time / default at {YARDSTICK.evaluations}", shares, "x")


def _add(report: Report, what: str, each: NDArray[np.float64], mean: Interval) -> None:
    figure = Figure(f"{what}, mean error", "", mean["value"], mean["low"], mean["high"], len(each))
    report.figures.append(figure)
    for name, share in (("median", 0.5), ("p99", 0.99)):
        value = float(np.quantile(each, share))
        report.figures.append(Figure(f"{what}, {name} error", "", value, value, value, len(each)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main("solvers", measure))

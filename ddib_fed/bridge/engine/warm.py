"""What a model is made of, and what is made of it: the model on its device, warm, with the batcher that drives it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ddib_fed.bridge.engine.batcher import Batcher
from ddib_fed.bridge.engine.budget import Budget, key_of, measured, remembered
from ddib_fed.bridge.engine.trajectory import Trajectory
from ddib_fed.bridge.model.domain_model import DTYPES, DomainModel, pixels
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import ConfigError, NotReady
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.devices import device_problem

log = logging.getLogger(__name__)

# Samples of the call with which threads are measured: large enough that a second thread could pay off.
WARM_UP_ROWS = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class Warm:
    """A model that works."""

    model: DomainModel
    batcher: Batcher
    threads: int


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Of what a node, or each of its workers, makes the model: the weights themselves, whatever its folder holds later."""

    bundle: Bundle
    classifier: Bundle | None = None
    device: str = "auto"
    threads: int = 0
    dtype: str = "float32"
    merge_rows: int = 2_048
    merge_pixels: int = 65_536
    max_trajectories: int = 64
    compiling: bool = False
    costs: Path | None = None

    def warm(self) -> Warm:
        """The model in this process."""
        model = DomainModel(
            self.bundle,
            device=_device(self.device),
            dtype=DTYPES[self.dtype],
            classifier=self.classifier,
            compiling=self.compiling,
        )
        threads = self.threads or _fastest_threads(model)
        budget = self._budget(model, threads)
        batcher = Batcher(
            model,
            rows=budget.rows if budget is not None else self._stated_rows(model),
            cost=None if budget is None else budget.cost,
            flows=self.max_trajectories,
            threads=threads if model.device.type == "cpu" else None,
        )
        try:
            _warm_up(model, batcher)
        except BaseException:
            batcher.close()
            raise
        return Warm(model, batcher, threads)

    def _stated_rows(self, model: DomainModel) -> int:
        if not model.is_picture:
            return self.merge_rows
        return max(1, self.merge_pixels // pixels(model)) if self.merge_pixels else 0

    def _budget(self, model: DomainModel, threads: int) -> Budget | None:
        """What calls cost, where the size of a call is to be measured."""
        if self._stated_rows(model):
            return None
        key = key_of(model, dtype=self.dtype, threads=threads, compiling=self.compiling)
        budget = remembered(self.costs, key, lambda: measured(model, threads))
        log.info("a network call takes %d rows, %.3g s", budget.rows, budget.cost(budget.rows))
        return budget


def _warm_up(model: DomainModel, executor: Batcher) -> None:
    """Run short legs of two sizes, and one guided by the classifier, so that the first request pays for nothing."""
    settings = SolverSettings(evaluations=2 if model.is_picture else 8)
    guided = [Guidance(classifier_scale=1.0)] if model.classifier is not None else []
    for guidance, rows in [
        (UNGUIDED, 1),
        (UNGUIDED, min(2, executor.rows) if model.is_picture else 64),
        *((each, 1) for each in guided),
    ]:
        label = 0 if model.classes(guidance) else None
        classes = model.class_rows(label, rows, guidance)
        noise = Trajectory("decode", _noise(model, rows), settings, guidance=guidance, label=classes)
        out = executor.submit(noise).result()
        if not torch.isfinite(out).all():
            raise NotReady(
                "the model answers with NaN or infinity to noise",
                hint="ddib model show BUNDLE; train it again",
            )


def _fastest_threads(model: DomainModel) -> int:
    """1 or all cores, whichever evaluates a large batch faster now (a busy second core makes OpenMP crawl)."""
    cores = torch.get_num_threads()
    if model.device.type != "cpu" or cores == 1:
        return 1
    rows = 1 if model.is_picture else WARM_UP_ROWS
    laid = model.plan(SolverSettings(evaluations=8))
    query = next(laid.decoder(_noise(model, rows), model.condition(_any_label(model), rows)))

    def evaluate() -> None:
        with torch.no_grad():
            model.denoiser()(query.x, query.level, query.cond, query.to)

    timings = {count: _median_seconds(evaluate, count) for count in (1, cores)}
    torch.set_num_threads(cores)
    # A second thread must pay clearly: it is taken from gRPC and from the other node on a small machine.
    return cores if timings[cores] < 0.7 * timings[1] else 1


def _noise(model: DomainModel, rows: int) -> torch.Tensor:
    noise = torch.randn(rows, *model.sample_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(model.device)


def _any_label(model: DomainModel) -> int | None:
    return 0 if model.manifest.num_classes else None


def _median_seconds(call: Callable[[], None], threads: int, repeats: int = 5) -> float:
    """Median wall time of `call` with that many threads, after one call that is not counted."""
    torch.set_num_threads(threads)
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[repeats // 2]


def _device(name: str) -> torch.device:
    """The device of a name in node.toml."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if problem := device_problem(name):
        raise ConfigError(
            f"engine.device = {name!a} cannot be used: {problem}",
            hint='engine.device = "auto" takes a GPU where there is one, "cpu" works everywhere',
        )
    return torch.device(name)

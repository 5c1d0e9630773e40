"""Turns samples into latents and latents into samples, with the node's one model; the only place that sees both.

Nothing leaves as a latent, and nothing is decoded, that was not checked here: finite, of the model's shape, and one
that an encoder makes by `diffusion.gaussianity.examine`: white noise for a picture, within reach of N(0, I) for a
point.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddib_fed.bridge.batcher import Batcher, Control, OnStep
from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.bridge import soften as soften_by
from ddib_fed.diffusion.denoiser import Condition
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.diffusion.plans import Plan, SolverSettings, plan
from ddib_fed.errors import (
    BundleInvalid,
    ConfigError,
    NotFinite,
    NotReady,
    SettingsInvalid,
    ShapeMismatch,
)
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.devices import device_problem

Array = NDArray[np.float32]
Soften = Callable[[Array], Array]
"""From samples (N, *sample_shape) in the model's units to the noise of their shape that softens them."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Samples of the call with which threads are measured: large enough that a second thread could pay off.
WARM_UP_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class Encoded:
    """A latent, and how white it is."""

    latent: Latent
    statistics: LatentStatistics
    seconds: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """Samples in the model's normalised units (`normalised`) and in those of its data (`samples`)."""

    normalised: Array
    samples: Array
    seconds: float


class Engine:
    """The node's model, warm.

    Args:
        bundle: The model.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU where there is one.
        threads: CPU threads; 0 measures 1 against all cores and keeps the faster.
        dtype: Of the network, a name in `DTYPES`; what is integrated stays float32.
        merge_rows: Most points in one network call; see `Batcher`.
        merge_pixels: Most pixels of pictures in one; at least one picture goes.
        max_trajectories: See `Batcher`.

    Raises:
        BundleInvalid: The bundle is no model that samples are made with.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        threads: int = 0,
        dtype: str = "float32",
        merge_rows: int = 2_048,
        merge_pixels: int = 65_536,
        max_trajectories: int = 16,
    ) -> None:
        if bundle.manifest.role != "generator":
            raise BundleInvalid(
                f"{bundle.manifest.name} is a {bundle.manifest.role}, and a node serves a generator",
                hint="set model.bundle to the folder of the model that it classifies for",
            )
        self.bundle = bundle
        self.device = _device(device)
        self._denoiser = bundle.denoiser(device=self.device, dtype=DTYPES[dtype])
        self._is_picture = bundle.manifest.sample_kind == "picture"
        if self._is_picture:
            merge_rows = max(1, merge_pixels // math.prod(self.sample_shape[1:]))
        self._merge_rows = merge_rows
        self.threads = threads or self._fastest_threads()
        self._batcher = Batcher(
            self._denoiser,
            merge_rows=merge_rows,
            max_trajectories=max_trajectories,
            threads=self.threads if self.device.type == "cpu" else None,
        )
        try:
            self._warm_up()
        except BaseException:
            self.close()
            raise

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample, without the batch."""
        return tuple(self.bundle.manifest.sample_shape)

    @property
    def counters(self) -> Mapping[str, int]:
        """Network calls made and samples evaluated in them."""
        return {"calls": self._batcher.calls, "rows": self._batcher.rows}

    def plan(self, settings: SolverSettings, soften_sigma: float | None = None) -> Plan:
        """The grids and solver for the settings, softened by the model's own sigma, or by another.

        Raises:
            SettingsInvalid: A name is unknown, a number out of range, or there is something that nodes do not agree on.
        """
        if settings.in_one_process:
            raise SettingsInvalid(
                "a node draws no noise in decoding, and follows no schedule or respacing but its own",
                hint="leave them out, or use `ddib bridge translate` in one process",
            )
        sigma = self.bundle.manifest.soften_sigma if soften_sigma is None else soften_sigma
        return plan(settings, self.bundle.schedule, soften_sigma=sigma)

    def check_label(self, label: int | None) -> None:
        """Raise unless the model can be told this class, or none.

        Raises:
            SettingsInvalid: It has no such class, has no classes, or cannot do without one.
        """
        manifest = self.bundle.manifest
        count = manifest.num_classes or 0
        if label is None and (not count or manifest.null_class is not None):
            return
        if label is None or not 0 <= label < count:
            said = "none" if label is None else str(label)
            raise SettingsInvalid(
                f"class {said} for a model of {count} classes", facts={"class": said, "classes": count}
            )

    def _condition(self, label: int | None, rows: int) -> Condition:
        """What the network is told of `rows` samples of a class that was checked."""
        self.check_label(label)
        index = self.bundle.manifest.null_class if label is None else label
        if index is None:
            return None
        return {"y": torch.full((rows,), index, dtype=torch.int64, device=self.device)}

    def check_samples(self, samples: Array) -> None:
        """Raise unless `samples` is (N, *sample_shape) and finite.

        Raises:
            ShapeMismatch: Another shape than the model's.
            NotFinite: NaN or infinity.
        """
        expected = self.sample_shape
        if samples.ndim < 2 or samples.shape[1:] != expected or samples.shape[0] == 0:
            raise ShapeMismatch(
                f"an array of shape {samples.shape} where (N, {', '.join(map(str, expected))}) is expected",
                facts={"got": str(tuple(samples.shape)), "expected": f"(N, {', '.join(map(str, expected))})"},
            )
        if not np.isfinite(samples).all():
            raise NotFinite(facts={"not_finite": int((~np.isfinite(samples)).sum())})

    def encode(
        self,
        samples: Array,
        settings: SolverSettings,
        *,
        control: Control | None = None,
        on_step: OnStep | None = None,
        decoded: bool = False,
        label: int | None = None,
        soften: Soften | None = None,
    ) -> Encoded:
        """Samples to a latent that passed the Gaussian check, unless less than the whole way was asked for.

        Args:
            samples: (N, *sample_shape) float32, in the units of the model's data unless `decoded`.
            settings: Solver and grid.
            control: Cancelling and deadline.
            on_step: Called with (evaluations done, evaluations).
            decoded: The samples are what this model's ODE ended with: in its own units, and not to be softened.
            label: Their class, where the model has classes.
            soften: Makes the noise that softens all others, where the model's manifest says that they are.

        Raises:
            ShapeMismatch, NotFinite: The samples cannot be used.
            SettingsInvalid: The settings or the class cannot be used, or there is no noise where some is needed.
            LatentNotGaussian: What came out is not white noise; it does not leave.
            Cancelled, DeadlineExceeded: As `control` says.
        """
        self.check_samples(samples)
        if not decoded:
            samples = self.normalise(samples)
            self.check_samples(samples)  # what is finite may overflow in the model's units
        condition = self._condition(label, len(samples))
        sigma = 0.0 if decoded else self.bundle.manifest.soften_sigma
        chosen = self.plan(settings, sigma)
        started = time.perf_counter()
        x = self._softened(samples, sigma, soften)
        z = self._drive(chosen.encoder(x, condition), chosen.evaluations, control, on_step)
        statistics = _examined(z, settings)
        latent = Latent.from_array(z.cpu().numpy())
        return Encoded(latent, statistics, time.perf_counter() - started)

    def decode(
        self,
        latent: Latent,
        settings: SolverSettings,
        *,
        control: Control | None = None,
        on_step: OnStep | None = None,
        label: int | None = None,
    ) -> Decoded:
        """A latent to samples.

        Args:
            latent: (N, *sample_shape); checked to be finite and white noise before it is used.
            settings: Solver and grid.
            control: Cancelling and deadline.
            on_step: Called with (evaluations done, evaluations).
            label: The class to decode to, where the model has classes.

        Raises:
            ShapeMismatch, NotFinite, LatentNotGaussian: The latent cannot be used.
            NotFinite: Nor can what came out.
            SettingsInvalid: The settings or the class cannot be used.
            Cancelled, DeadlineExceeded: As `control` says.
        """
        self.check_samples(latent.data)
        z = torch.from_numpy(latent.data.copy()).to(self.device)
        _examined(z, settings)
        condition = self._condition(label, len(z))
        chosen = self.plan(settings)
        started = time.perf_counter()
        x = self._drive(chosen.decoder(z, condition), chosen.evaluations, control, on_step).cpu().numpy()
        self.check_samples(x)
        return Decoded(x, self.denormalise(x), time.perf_counter() - started)

    def normalise(self, samples: Array) -> Array:
        """From the units of the data to the model's (mean 0, standard deviation 1)."""
        with np.errstate(over="ignore"):
            return self.bundle.manifest.normalisation.apply(samples)

    def denormalise(self, samples: Array) -> Array:
        """The inverse of `normalise`."""
        return self.bundle.manifest.normalisation.undo(samples)

    def _softened(self, samples: Array, sigma: float, soften: Soften | None) -> torch.Tensor:
        """The samples on the device, diffused to the noise level sigma; never the caller's own memory."""
        x = torch.from_numpy(samples).to(self.device, copy=True)
        if sigma == 0.0:
            return x
        noise = None if soften is None else torch.from_numpy(soften(samples)).to(self.device)
        return soften_by(x, sigma, noise)

    def close(self) -> None:
        """Stop the worker; unfinished work fails with `Draining`."""
        self._batcher.close()

    def _drive(
        self, solver: Any, evaluations: int, control: Control | None, on_step: OnStep | None
    ) -> torch.Tensor:
        future: Future[torch.Tensor] = self._batcher.submit(
            solver, steps=evaluations, control=control, on_step=on_step
        )
        return future.result()

    def _warm_up(self) -> None:
        """Run one short leg of two sizes, so that the first request pays for nothing."""
        quick = SolverSettings(evaluations=2 if self._is_picture else 8)
        for rows in (1, min(2, self._merge_rows) if self._is_picture else 64):
            noise = torch.randn(rows, *self.sample_shape, generator=torch.Generator().manual_seed(0))
            chosen = self.plan(quick)
            solver = chosen.decoder(noise.to(self.device), self._any_condition(rows))
            out = self._drive(solver, chosen.evaluations, None, None)
            if not torch.isfinite(out).all():
                raise NotReady(
                    "the model answers with NaN or infinity to noise",
                    hint="ddib model show BUNDLE; train it again",
                )

    def _fastest_threads(self) -> int:
        """1 or all cores, whichever evaluates a large batch faster now (a busy second core makes OpenMP crawl)."""
        cores = torch.get_num_threads()
        if self.device.type != "cpu" or cores == 1:
            return 1
        rows = 1 if self._is_picture else WARM_UP_ROWS
        x = torch.randn(rows, *self.sample_shape, generator=torch.Generator().manual_seed(0))
        chosen = self.plan(SolverSettings(evaluations=8))
        query = next(chosen.decoder(x, self._any_condition(rows)))
        timings = {count: _median_seconds(lambda: self._evaluate_once(query), count) for count in (1, cores)}
        torch.set_num_threads(cores)
        # A second thread must pay clearly: it is taken from gRPC and from the other node on a small machine.
        return cores if timings[cores] < 0.7 * timings[1] else 1

    def _any_condition(self, rows: int) -> Condition:
        """A class that the model has, for calls of which only the time or finiteness counts."""
        return self._condition(0 if self.bundle.manifest.num_classes else None, rows)

    def _evaluate_once(self, query: Any) -> None:
        with torch.no_grad():
            self._denoiser(query.x, query.level, query.cond)


def _examined(z: torch.Tensor, settings: SolverSettings) -> gaussianity.LatentStatistics:
    """Statistics of a latent, which must be those of noise if it is one of the whole way; of less depth none is."""
    return gaussianity.examine(z) if settings.depth == 1.0 else gaussianity.measure(z)


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
    """The device of a name in node.toml.

    Raises:
        ConfigError: There is none of that name here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if problem := device_problem(name):
        raise ConfigError(
            f"engine.device = {name!a} cannot be used: {problem}",
            hint='engine.device = "auto" takes a GPU where there is one, "cpu" works everywhere',
        )
    return torch.device(name)

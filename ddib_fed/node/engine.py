"""Turns samples into latents and latents into samples, with the node's one model; the only place that sees both.

Nothing leaves as a latent, and nothing is decoded, that was not checked here: finite, of the model's shape, and one
that an encoder makes by `diffusion.gaussianity.examine`: white noise for a picture, within reach of N(0, I) for a
point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.diffusion.plans import Plan, SolverSettings, plan
from ddib_fed.errors import NotFinite, NotReady, ShapeMismatch
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.node.batching import Batcher, Control, OnStep
from ddib_fed.node.config import NodeConfig
from ddib_fed.wire.latent import Latent

Array = NDArray[np.float32]
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
        merge_rows: See `Batcher`.
        max_trajectories: See `Batcher`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        threads: int = 0,
        merge_rows: int = 2_048,
        max_trajectories: int = 16,
    ) -> None:
        self.bundle = bundle
        self.device = _device(device)
        self._denoiser = bundle.denoiser(device=self.device)
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

    @classmethod
    def from_config(cls, config: NodeConfig) -> Engine:
        """Load and warm up the model of a node.

        Raises:
            ModelNotFound: There is no bundle at the configured place.
            BundleInvalid: It fails its checks.
        """
        section = config.engine
        return cls(
            load_bundle(config.paths.bundle),
            device=section.device,
            threads=section.threads,
            merge_rows=section.merge_rows,
            max_trajectories=section.max_trajectories,
        )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample, without the batch."""
        return tuple(self.bundle.manifest.sample_shape)

    @property
    def counters(self) -> Mapping[str, int]:
        """Network calls made and samples evaluated in them."""
        return {"calls": self._batcher.calls, "rows": self._batcher.rows}

    def plan(self, settings: SolverSettings) -> Plan:
        """The grid and solver for the settings.

        Raises:
            SettingsInvalid: A name is unknown or a number out of range.
        """
        return plan(settings, self.bundle.schedule)

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
        normalised: bool = False,
    ) -> Encoded:
        """Samples to a latent that passed the Gaussian check.

        Args:
            samples: (N, *sample_shape) float32, in the units of the model's data unless `normalised`.
            settings: Solver and grid.
            control: Cancelling and deadline.
            on_step: Called with (evaluations done, evaluations).
            normalised: The samples are in the model's own units already.

        Raises:
            ShapeMismatch, NotFinite: The samples cannot be used.
            SettingsInvalid: The settings cannot be used.
            LatentNotGaussian: What came out is not white noise; it does not leave.
            Cancelled, DeadlineExceeded: As `control` says.
        """
        self.check_samples(samples)
        if not normalised:
            samples = self.normalise(samples)
            self.check_samples(samples)  # what is finite may overflow in the model's units
        x = torch.from_numpy(samples).to(self.device, copy=True)
        chosen = self.plan(settings)
        started = time.perf_counter()
        z = self._drive(chosen.encoder(x), chosen.evaluations, control, on_step)
        statistics = gaussianity.examine(z)
        latent = Latent.from_array(z.cpu().numpy())
        return Encoded(latent, statistics, time.perf_counter() - started)

    def decode(
        self,
        latent: Latent,
        settings: SolverSettings,
        *,
        control: Control | None = None,
        on_step: OnStep | None = None,
    ) -> Decoded:
        """A latent to samples.

        Args:
            latent: (N, *sample_shape); checked to be finite and white noise before it is used.
            settings: Solver and grid.
            control: Cancelling and deadline.
            on_step: Called with (evaluations done, evaluations).

        Raises:
            ShapeMismatch, NotFinite, LatentNotGaussian: The latent cannot be used.
            NotFinite: Nor can what came out.
            SettingsInvalid: The settings cannot be used.
            Cancelled, DeadlineExceeded: As `control` says.
        """
        self.check_samples(latent.data)
        z = torch.from_numpy(latent.data.copy()).to(self.device)
        gaussianity.examine(z)
        chosen = self.plan(settings)
        started = time.perf_counter()
        x = self._drive(chosen.decoder(z), chosen.evaluations, control, on_step).cpu().numpy()
        self.check_samples(x)
        return Decoded(x, self.denormalise(x), time.perf_counter() - started)

    def normalise(self, samples: Array) -> Array:
        """From the units of the data to the model's (mean 0, standard deviation 1)."""
        mean, std = self._constants(samples)
        with np.errstate(over="ignore"):
            return ((samples - mean) / std).astype(np.float32)

    def denormalise(self, samples: Array) -> Array:
        """The inverse of `normalise`."""
        mean, std = self._constants(samples)
        return (samples * std + mean).astype(np.float32)

    def _constants(self, samples: Array) -> tuple[Array, Array]:
        mean, std = self.bundle.manifest.normalisation.numbers(samples.ndim)
        return mean.astype(np.float32), std.astype(np.float32)

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
        quick = SolverSettings(evaluations=8)
        for rows in (1, 64):
            noise = torch.randn(rows, *self.sample_shape, generator=torch.Generator().manual_seed(0))
            chosen = self.plan(quick)
            out = self._drive(chosen.decoder(noise.to(self.device)), chosen.evaluations, None, None)
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
        x = torch.randn(WARM_UP_ROWS, *self.sample_shape, generator=torch.Generator().manual_seed(0))
        chosen = self.plan(SolverSettings(evaluations=8))
        query = next(chosen.decoder(x))
        timings = {count: _median_seconds(lambda: self._evaluate_once(query), count) for count in (1, cores)}
        torch.set_num_threads(cores)
        # A second thread must pay clearly: it is taken from gRPC and from the other node on a small machine.
        return cores if timings[cores] < 0.7 * timings[1] else 1

    def _evaluate_once(self, query: Any) -> None:
        with torch.no_grad():
            self._denoiser(query.x, query.level, query.cond)


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
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)

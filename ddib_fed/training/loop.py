"""Turns a `PointTrainConfig` into a bundle, with checkpoints on the way.

The rule: step k is a function of (config, k) and the state after step k - 1. Nothing random is stored, nothing
depends on the clock once the number of steps is settled, so a run that was killed and resumed ends bit for bit as the
run that was not (same threads, same torch).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ddib_fed.datasets.synthetic import normals, uniforms
from ddib_fed.diffusion.schedule import DiscreteSchedule, ScheduleConfig, schedule_from_config
from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.configs import MlpConfig, SyntheticConfig
from ddib_fed.networks.registry import build_network
from ddib_fed.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from ddib_fed.training.config import PointTrainConfig, learning_rate
from ddib_fed.training.ema import Ema
from ddib_fed.training.losses import Batch, LambdaSampler, make_batch, make_step_batch
from ddib_fed.training.sources import DATA_COLUMNS, Source

_PROBE_WARMUP, _PROBE_STEPS = 3, 12
_PROBE_MARGIN = 0.93
_HELD_OUT_SEED = 2**63


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        loss: Smoothed training loss.
        rate: Steps a second since this process began.
    """

    step: int
    steps: int
    loss: float
    rate: float


OnProgress = Callable[[Progress], None]


class Trainer:
    """A network in training, with everything that a step changes.

    Args:
        config: The run, its number of steps settled.
        source: Its points.

    Attributes:
        step: Steps done.
        network: The network.
        ema: Its averages.
    """

    def __init__(self, config: PointTrainConfig, source: Source) -> None:
        self.config = config
        self.source = source
        self.step = 0
        self._schedule = schedule_from_config(point_schedule(config))
        self._lambdas = LambdaSampler(self._schedule)
        self.network = new_network(config, source.dim)
        self.ema = Ema(self.network, config.ema)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=0.0,
            fused=True,
        )
        self._held_out = self._held_out_batch()

    @property
    def steps(self) -> int:
        """Steps in all."""
        if self.config.steps is None:
            raise SettingsInvalid("the number of steps is not settled")
        return self.config.steps

    def advance(self) -> float:
        """One optimiser step; returns its loss.

        Raises:
            SettingsInvalid: The loss is no longer finite.
        """
        config = self.config
        batch = self._batch(uniforms(config.seed, self.step, config.batch, self._columns))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self._optimizer.step()
        self.ema.update(self.network, self.step)
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SettingsInvalid(
                f"the loss is {value} after {self.step} steps",
                hint="look for outliers, or lower the learning rate",
            )
        return value

    def held_out_loss(self) -> float:
        """The loss of the averaged weights on points that are never trained on, always the same ones."""
        averaged = build_network(network_config(self.config, self.source.dim)).eval()
        averaged.load_state_dict(self.ema.state_dict())
        batch = self._held_out
        with torch.no_grad():
            return float(torch.mean((averaged(batch.x, batch.times, batch.rows) - batch.target) ** 2))

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold."""
        parts = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer_tensors(self._optimizer),
        }
        return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run."""
        self.network.load_state_dict(checkpoint.part("network"))
        self.ema.load_state_dict(checkpoint.part("ema"))
        restore_optimizer(self._optimizer, checkpoint.part("optimizer"))
        self.step = checkpoint.info.step

    @property
    def _columns(self) -> int:
        """Uniform numbers a sample takes: its point, its noise in pairs, its level."""
        return DATA_COLUMNS + 2 * math.ceil(self.source.dim / 2) + 1

    def _batch(self, u: np.ndarray) -> Batch:
        """Questions and answers from uniforms (B, columns); the levels are stratified over the batch."""
        count = self.config.levels
        x0 = torch.from_numpy(self.source.take(u[:, :DATA_COLUMNS]))
        return self._questions(x0, u, count, self.config.reference)

    def _held_out_batch(self) -> Batch:
        """As `_batch`, on held-out points, with plain targets where there are too few for a posterior."""
        count = len(self.source.held_out)
        u = uniforms(_HELD_OUT_SEED, self.config.seed, count, self._columns)
        levels = min(self.config.levels, count)
        reference = self.config.reference if count % max(1, self.config.reference) == 0 else 0
        return self._questions(torch.from_numpy(self.source.held_out), u, levels, reference)

    def _questions(self, x0: Tensor, u: np.ndarray, levels: int, reference: int) -> Batch:
        """What is asked of noisy x0, and the answers, from uniforms (B, columns)."""
        spread = torch.from_numpy((np.arange(levels) + u[:levels, -1]) / levels)
        noise = _noise(u, self.source.dim)
        if self.config.network == "public":
            assert isinstance(self._schedule, DiscreteSchedule)
            return make_step_batch(x0, noise, spread, self._schedule)
        return make_batch(x0, noise, self._lambdas(spread), reference=reference)

    def _loss(self, batch: Batch) -> Tensor:
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16")
        with mixed, _dropping(self.config, self.step):
            answer = self.network(batch.x, batch.times, batch.rows)
        return torch.mean((answer.float() - batch.target) ** 2)


def new_network(config: PointTrainConfig, dim: int) -> nn.Module:
    """The network of a run with its first weights, a function of the seed; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_network(network_config(config, dim)).train()


def settle(config: PointTrainConfig, source: Source) -> PointTrainConfig:
    """The config with its number of steps settled; for `time_s` the rate is measured on a network thrown away."""
    if config.time_s is None:
        return config.settled()
    trial = Trainer(config.settled(1_000_000), source)
    for _ in range(_PROBE_WARMUP):
        trial.advance()
    start = time.monotonic()
    for _ in range(_PROBE_STEPS):
        trial.advance()
    rate = _PROBE_STEPS / (time.monotonic() - start)
    return config.settled(max(1, int(config.time_s * _PROBE_MARGIN * rate)))


def point_schedule(config: PointTrainConfig) -> ScheduleConfig:
    """The noise schedule of a run on points, as the bundle names it."""
    return ScheduleConfig(name=config.schedule, steps=config.diffusion_steps)


def network_config(config: PointTrainConfig, dim: int) -> MlpConfig | SyntheticConfig:
    """The network of a run on points (N, dim)."""
    if config.network == "mlp":
        return MlpConfig(dim=dim, width=config.width, blocks=config.blocks)
    return SyntheticConfig(
        in_channels=dim,
        out_channels=dim,
        num_channels=config.num_channels,
        num_res_blocks=config.num_res_blocks,
        dropout=config.dropout,
    )


@contextmanager
def _dropping(config: PointTrainConfig, step: int) -> Iterator[None]:
    """Make what dropout draws a function of the seed and the step; torch's own generator is left as it was."""
    if config.dropout == 0.0:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            int(np.random.SeedSequence([config.seed, step]).generate_state(1, np.uint64)[0] >> 1)
        )
        yield


def _noise(u: np.ndarray, dim: int) -> Tensor:
    """Standard normal (N, dim), float32, from the noise columns of uniforms."""
    pairs = range(DATA_COLUMNS, DATA_COLUMNS + dim, 2)
    return torch.from_numpy(
        np.concatenate([normals(u[:, i : i + 2]) for i in pairs], axis=1)[:, :dim]
    ).float()

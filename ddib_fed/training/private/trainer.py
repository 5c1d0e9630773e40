"""Optimiser steps with differential privacy: DP-SGD (Abadi et al., arXiv 1607.00133) through opacus.

Step k is a function of (config, key, k) and the state after step k - 1, so a run that was killed and resumed takes the
steps that an uninterrupted one takes, and has spent as much.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.dp import DifferentialPrivacy
from ddib_fed.training.loop.checkpoint import Checkpoint
from ddib_fed.training.loop.distributed import World
from ddib_fed.training.loop.trainer import Task, Trainer
from ddib_fed.training.private.accounting import Ledger, noise_for, require_opacus
from ddib_fed.training.private.gradients import Draws, SampleGradients
from ddib_fed.training.private.key import RunKey
from ddib_fed.training.settings.config import AnyConfig, PictureTrainConfig
from ddib_fed.training.settings.distil_config import DistilConfig


class PrivateTask(Task, Protocol):
    """A task whose samples can be taken one by one."""

    @property
    def training_samples(self) -> int:
        """How many samples there are to train on."""

    def draws(self, step: int, chosen: NDArray[np.int64], key: RunKey) -> Draws:
        """The samples of these numbers (n,), n > 0, on the CPU; each depends on no other one."""


class PrivateTrainer(Trainer):
    task: PrivateTask

    def __init__(self, task: PrivateTask, world: World, key: RunKey) -> None:
        super().__init__(task, world, ahead=False)
        require_opacus()
        from ddib_fed.training.private.optimizer import ClippedSums

        config = self.config
        assert not isinstance(config, DistilConfig)
        assert config.dp_epsilon is not None  # the caller has looked
        self._private, self._key = config, key
        self._each = SampleGradients(self.network)
        rate = self.batch / task.training_samples
        noise = noise_for(
            config.dp_accountant,
            epsilon=config.dp_epsilon,
            delta=config.dp_delta,
            rate=rate,
            steps=self.steps,
        )
        self._ledger = Ledger(config.dp_accountant, rate, noise)
        self._sums = ClippedSums(
            self._optimizer, noise_multiplier=noise, clip=config.dp_clip, expected=self.batch, key=key
        )
        self._last_loss = torch.zeros((), dtype=torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        history = {f"privacy.{name}": value for name, value in self._ledger.tensors().items()}
        return {**super().tensors(), **history}

    def restore(self, checkpoint: Checkpoint) -> None:
        super().restore(checkpoint)
        self._ledger.restore(checkpoint.part("privacy"))
        self._sums.noise_multiplier = self._ledger.noise_multiplier

    def planned(self) -> str:
        """What all steps together are going to spend."""
        config = self._private
        return (
            f"{self.steps} steps with noise multiplier {self._ledger.noise_multiplier:.4g} and sampling rate "
            f"{self._ledger.rate:.4g} spend at most epsilon {config.dp_epsilon:g} at delta {config.dp_delta:g}"
        )

    def spent(self) -> DifferentialPrivacy:
        """What the steps so far have spent."""
        config = self._private
        return DifferentialPrivacy(
            epsilon=self._ledger.epsilon(config.dp_delta),
            delta=config.dp_delta,
            noise_multiplier=self._ledger.noise_multiplier,
            clip=config.dp_clip,
            sampling_rate=self._ledger.rate,
            steps=self._ledger.steps,
            draws=config.dp_draws,
            accountant=config.dp_accountant,
            initial=config.init_digest if isinstance(config, PictureTrainConfig) else "",
        )

    def _accumulate(self) -> Tensor:
        self._sums.zero_grad(set_to_none=True)
        losses = [torch.zeros(0, device=self.world.device)]
        chosen = self._key.chosen(self.step, self.task.training_samples, self._ledger.rate)
        if len(chosen):
            draws = self.task.draws(self.step, chosen, self._key)
            for part in draws.parts(min(self.microbatch, self._each.at_once), self.world.device):
                gradients, found = self._each(part)
                self._sums.add(gradients)
                losses.append(found)
        self._sums.finish(self.step)
        return torch.cat(losses)

    def _bound_gradient(self) -> None: ...

    def _learn(self, losses: Tensor) -> Tensor:
        self._ledger.count()
        if len(losses):
            self._last_loss = losses.double().mean()
        return self._last_loss


def require_private(config: AnyConfig, samples: int, processes: int) -> None:
    """Return if a run can be private, or does not ask for it."""
    if isinstance(config, DistilConfig) or config.dp_epsilon is None:
        return
    require_opacus()
    if processes > 1:
        raise SettingsInvalid(
            "a run with differential privacy has one process: samples are drawn and noised once",
            hint="start it without torchrun",
        )
    batch = int(config.settled().batch or 1)
    if batch > samples:
        raise SettingsInvalid(
            f"a step takes {batch} of {samples} training samples on average, which are too few",
            hint=f"--batch {max(1, samples // 10)}",
        )
    if config.dp_delta >= 1 / samples:
        raise SettingsInvalid(
            f"delta {config.dp_delta:g} is not less than 1 / {samples} training samples: publishing one of them would "
            "be allowed",
            hint=f"--dp-delta {0.1 / samples:.0e}",
        )

"""Training with differential privacy: DP-SGD (Abadi et al., arXiv 1607.00133) with the accountants of opacus.

With g_i the gradient of sample i, the mean over its K draws of noise level and noise (Dockhorn et al., arXiv
2210.09929, section 3.2), a step takes the noised mean of clipped g_i over a Poisson sample.

All that is random in the steps follows from a key of the run, not from the seed, which the bundle names: whoever knew
the noise could subtract it. The key lies in the run's folder, for a resumed run, until the bundle is there.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddib_fed.datasets import normals
from ddib_fed.diffusion.schedule import DiscreteSchedule
from ddib_fed.errors import SettingsInvalid, StateConflict, extra
from ddib_fed.files import write_file
from ddib_fed.models.manifest import DifferentialPrivacy
from ddib_fed.networks.spectrum import Spectrum
from ddib_fed.training.config import PrivateTrainConfig, RunPlan
from ddib_fed.training.objective import make_batch, make_step_batch
from ddib_fed.training.pictures import COLUMNS, DROP, LEVEL, PictureTask
from ddib_fed.training.points import PointTask
from ddib_fed.training.run import OnScan, Opened, RunState, Say, open_run
from ddib_fed.training.sources import PictureSource
from ddib_fed.training.trainer import Task, Trainer, World

ACCOUNTANT = "prv"  # needs less noise than `rdp`
CLIP = 1.0
"""Norm to which the gradient of each sample is clipped; of ADAM's steps only its ratio to the noise counts."""
DRAWS = 4  # noise levels, with noise of their own, over which a sample's gradient is the mean
DELTA_SHARE = 0.1
"""Delta times the number of training samples: below 1, at which publishing one of them would be allowed."""
KEY_FILE, KEY_BYTES = "noise.key", 32
GRADIENT_BYTES = 1 << 28  # what the gradients of the samples that are computed together may take
_MASKS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCHES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def least_noise(*, epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return the least noise multiplier with which so many steps spend at most `epsilon`, to 0.01 of it."""
    from opacus.accountants.utils import get_noise_multiplier

    aims: dict[str, Any] = {"target_epsilon": epsilon, "target_delta": delta, "accountant": ACCOUNTANT}
    try:
        with warnings.catch_warnings(action="ignore"):
            return float(get_noise_multiplier(sample_rate=rate, steps=steps, **aims))
    except ValueError as error:
        problem = f"no noise is enough for epsilon {epsilon:g} at delta {delta:g}"
        raise SettingsInvalid(problem, hint="a larger --epsilon") from error


def spent_epsilon(*, noise: float, delta: float, rate: float, steps: int) -> float:
    from opacus.accountants import create_accountant

    accountant = create_accountant(ACCOUNTANT)
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings(action="ignore"):
        return float(accountant.get_epsilon(delta))


@dataclass(frozen=True, slots=True)
class RunKey:
    secret: bytes = field(repr=False)

    def uniforms(self, purpose: str, step: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Uniform numbers in [0, 1), a function of key, purpose and step; a longer stream begins as a shorter one."""
        name = hashlib.sha256(self.secret + f"{purpose} {step}".encode()).digest()
        stream = Cipher(ChaCha20(name, bytes(16)), mode=None).encryptor().update(bytes(8 * math.prod(shape)))
        bits = np.frombuffer(stream, np.uint64) >> np.uint64(11)
        return (bits.astype(np.float64) * 2.0**-53).reshape(shape)

    def normals(self, purpose: str, step: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
        count = math.prod(shape)
        pairs = normals(self.uniforms(purpose, step, ((count + 1) // 2, 2)))
        return pairs.reshape(-1)[:count].reshape(shape)

    def chosen(self, step: int, total: int, rate: float) -> NDArray[np.int64]:
        return np.flatnonzero(self.uniforms("chosen", step, (total,)) < rate)


def key_of_run(folder: Path, *, begun: bool) -> RunKey:
    """Return the key of the run in `folder`, new for a new run; raise StateConflict if a begun run lost it."""
    path = folder / KEY_FILE
    if path.exists():
        secret = path.read_bytes()
        if len(secret) == KEY_BYTES:
            return RunKey(secret)
    if begun:
        raise StateConflict(
            f"{path} is missing or damaged: steps that were taken since the last checkpoint would be taken with "
            "other noise, and spend twice",
            hint="--force starts the run again",
        )
    key = RunKey(secrets.token_bytes(KEY_BYTES))
    write_file(path, key.secret, private=True)
    return key


class Draws(NamedTuple):
    """Samples (n, K, ...) with K draws of noise level and noise each."""

    x: Tensor
    times: Tensor
    target: Tensor
    labels: Tensor | None = None

    def parts(self, size: int, device: torch.device) -> Iterator[Draws]:
        for first in range(0, len(self.x), size):
            part = (None if field is None else field[first : first + size].to(device) for field in self)
            yield Draws(*part)  # type: ignore[arg-type]


class SampleGradients:
    def __init__(self, network: nn.Module) -> None:
        refuse_layers(network)
        self._network, self._buffers = network, dict(network.named_buffers())
        size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
        self.at_once = max(1, GRADIENT_BYTES // size)

    def __call__(self, draws: Draws) -> tuple[list[Tensor], Tensor]:
        weights = {name: value.detach() for name, value in self._network.named_parameters()}
        labels = None if draws.labels is None else 0
        each = vmap(grad_and_value(self._loss), in_dims=(None, 0, 0, 0, labels))
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
            gradients, losses = each(weights, *draws)
        return list(gradients.values()), losses

    def _loss(self, weights: Any, x: Tensor, times: Tensor, target: Tensor, y: Tensor | None) -> Tensor:
        named = {} if y is None else {"y": y}
        answer = functional_call(self._network, (weights, self._buffers), (x, times), named)
        loss: Tensor = (answer - target).square().mean()
        return loss


def refuse_layers(network: nn.Module) -> None:
    """Raise if a layer mixes samples."""
    for name, layer in network.named_modules():
        drops = isinstance(layer, _MASKS) and layer.p > 0
        if drops or isinstance(layer, _BATCHES) or getattr(layer, "running_mean", None) is not None:
            raise SettingsInvalid(
                f"{name} of the network is a {type(layer).__name__}, which differential privacy does not allow: "
                "the gradient of a sample would depend on the others of its batch",
                hint="start from a network of group normalisation without dropout",
            )


class PrivatePoints(PointTask):
    def draws(self, step: int, chosen: NDArray[np.int64], key: RunKey) -> Draws:
        """Return the samples of these numbers (n,), n > 0, on the CPU; each depends on no other one."""
        shape, dim = (len(chosen), DRAWS), self.source.dim
        u = torch.from_numpy((np.arange(DRAWS) + key.uniforms("levels", step, shape)) / DRAWS).reshape(-1)
        eps = torch.from_numpy(key.normals("noise of points", step, (u.numel(), dim))).float()
        x0 = torch.from_numpy(self.source.train[chosen]).repeat_interleave(DRAWS, 0)
        if self.config.public:
            assert isinstance(self._schedule, DiscreteSchedule)
            batch = make_step_batch(x0, eps, u, self._schedule)
        else:
            batch = make_batch(x0, eps, self._lambdas(u), reference=0)
        x, target = (part.reshape(*shape, dim) for part in (batch.x, batch.target))
        return Draws(x, batch.times.reshape(shape), target)


class PrivatePictures(PictureTask):
    """No figure, spectrum or threshold is measured of training pictures: no noise would hide what it tells of them."""

    def measure_spectrum(self, spectrum: Spectrum) -> None:
        """Nothing: the spectrum stays that of the initial weights."""

    def reference_pictures(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.source.held_out[::2], self.source.held_out[1::2]

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        said = super().show(trainer, folder, last=last)
        self.figures = {name: value for name, value in self.figures.items() if "training_picture" not in name}
        return said

    def draws(self, step: int, chosen: NDArray[np.int64], key: RunKey) -> Draws:
        each, shape = np.repeat(chosen, DRAWS), (len(chosen), DRAWS)
        u = key.uniforms("pictures", step, (len(each), COLUMNS))
        x = self.changed(each, u, step, 0)
        filled = key.uniforms("quantisation", step, x.shape) - 0.5
        x = x + (filled * self.source.quantum).astype(np.float32)
        eps = torch.from_numpy(key.normals("noise of pictures", step, x.shape)).float()
        levels = torch.from_numpy((np.tile(np.arange(DRAWS), len(chosen)) + u[:, LEVEL]) / DRAWS)
        question = self.ask(torch.from_numpy(self.normal.apply(x)), eps, self._lambdas(levels))
        xs, target = (part.reshape(*shape, *part.shape[1:]) for part in (question.x, question.target))
        labels = self.labels(each, u[:, DROP])
        return Draws(
            xs, question.times.reshape(shape), target, None if labels is None else labels.reshape(shape)
        )


PrivateTask = PrivatePoints | PrivatePictures


def add_clipped(sums: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Add to sums (*shape) the gradients (n, *shape) of some samples, each with a norm of at most `CLIP` over all."""
    norms = torch.stack([each.flatten(1).norm(dim=1) for each in gradients]).norm(dim=0)
    factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)
    for total, each in zip(sums, gradients, strict=True):
        total.add_(torch.einsum("n,n...->...", factors, each))


class PrivateTrainer(Trainer):
    def __init__(
        self, task: PrivateTask, world: World, plan: RunPlan, key: RunKey, initial: str = ""
    ) -> None:
        super().__init__(task, world, plan, ahead=False)
        config = self.config
        assert isinstance(config, PrivateTrainConfig)
        self._private, self._key, self._initial = task, key, initial
        self._each = SampleGradients(self.network)
        self._samples = len(task.source.train)
        self.delta, self.rate = DELTA_SHARE / self._samples, config.batch / self._samples
        self.noise = least_noise(epsilon=config.epsilon, delta=self.delta, rate=self.rate, steps=plan.total)
        self.notes.append(
            f"differential privacy: {plan.total} steps with noise multiplier {self.noise:.4g} and sampling rate "
            f"{self.rate:.4g} spend at most epsilon {config.epsilon:g} at delta {self.delta:g}"
        )
        self._losses = torch.zeros(1)  # of the last step that had samples

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "privacy.noise": torch.tensor(self.noise, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore(tensors)
        self.noise = float(tensors["privacy.noise"])

    def spent(self) -> DifferentialPrivacy:
        epsilon = spent_epsilon(noise=self.noise, delta=self.delta, rate=self.rate, steps=self.step)
        return DifferentialPrivacy(
            epsilon=epsilon,
            delta=self.delta,
            noise_multiplier=self.noise,
            clip=CLIP,
            sampling_rate=self.rate,
            steps=self.step,
            draws=DRAWS,
            accountant=ACCOUNTANT,
            initial=self._initial,
        )

    def _accumulate(self) -> Tensor:
        sums = [torch.zeros_like(parameter) for parameter in self._parameters]
        losses: list[Tensor] = []
        chosen = self._key.chosen(self.step, self._samples, self.rate)
        if len(chosen):
            draws = self._private.draws(self.step, chosen, self._key)
            for part in draws.parts(min(self.microbatch, self._each.at_once), self.world.device):
                gradients, of_each = self._each(part)
                add_clipped(sums, gradients)
                losses.append(of_each)
            self._losses = torch.cat(losses)
        for number, (parameter, total) in enumerate(zip(self._parameters, sums, strict=True)):
            drawn = self._key.normals(f"noise {number}", self.step, tuple(total.shape))
            noise = torch.from_numpy(self.noise * CLIP * drawn).to(total.device, total.dtype)
            parameter.grad = (total + noise) / self.config.batch
        return self._losses

    def _bound_gradient(self) -> None: ...


def open_private(
    config: PrivateTrainConfig,
    source: PictureSource | None,
    out: Path,
    say: Say | None,
    on_scan: OnScan | None,
) -> Opened:
    why = "training with differential privacy needs opacus"
    with extra("dp", "opacus", why, otherwise="train by ddib model train"):  # before anything is read
        import opacus  # noqa: F401
    opened = open_run(config, source, out, say, on_scan, (PrivatePoints, PrivatePictures))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problem = "a run with differential privacy has one process: samples are drawn and noised once"
        raise SettingsInvalid(problem, hint="start it without torchrun")
    if config.batch > opened.samples:
        raise SettingsInvalid(
            f"a step takes {config.batch} of {opened.samples} training samples on average, which are too few",
            hint=f"--batch {max(1, opened.samples // 10)}",
        )

    def trainer(task: Task, world: World, plan: RunPlan, run: Path, state: RunState | None) -> Trainer:
        assert isinstance(task, PrivatePoints | PrivatePictures)
        begun = state is not None and state.step < plan.total
        bundle = task.start.bundle if isinstance(task, PrivatePictures) else None
        initial = "" if bundle is None else bundle.digest
        return PrivateTrainer(task, world, plan, key_of_run(run, begun=begun), initial)

    return replace(opened, trainer=trainer, after=lambda run: (run / KEY_FILE).unlink(missing_ok=True))

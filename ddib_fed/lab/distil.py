"""Distillation: a network that encodes and decodes in 1, 2, 4 or 8 evaluations, learned from a teacher's paths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddib_fed.data.folder import Progress, require_outside
from ddib_fed.diffusion.bridge import decode, integrate, soften
from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.plans import FLOW_MAP, SolverSettings, plan
from ddib_fed.diffusion.schedule import Schedule
from ddib_fed.errors import SettingsInvalid
from ddib_fed.lab.config import DistilConfig
from ddib_fed.lab.teacher import Pool, Questions, Say, Starts, Teacher, asked, open_starts
from ddib_fed.models.bundle import Bundle, open_bundle
from ddib_fed.models.manifest import Distilled, DistilledError, Manifest
from ddib_fed.networks.config import MlpConfig, UNetConfig, build_network, network_with
from ddib_fed.training.checkpoint import DTYPES
from ddib_fed.training.run import OnScan, Opened
from ddib_fed.training.sources import PictureSource, channels_last
from ddib_fed.training.trainer import Piece, Trainer

_OF_THE_TEACHER = (
    "sample_kind", "sample_shape", "parameterisation", "time_input", "schedule", "normalisation", "value_range",
    "soften_sigma", "picture", "classes", "data", "structure",
)  # fmt: skip
HELD_OUT, HELD_OUT_NUMBERS = 512, 1 << 17
"""Held-out samples whose paths are asked for the held-out loss, and numbers in them, at most."""
_HELD_OUT_SEED = 91
EVALUATIONS = (1, 2, 4, 8)
REFERENCE = SolverSettings("unipc", 3, 96)
"""How the teacher answers: twice the default's evaluations."""
GRIDS = ("default", "uniform-lambda")
"""Where steps may end; neither is the better one for every model."""
_AT_ONCE = 1 << 18
"""Numbers of the samples in one network call."""
_MEASURE_SEED = 40_961


@dataclass(frozen=True, slots=True)
class Lesson:
    """A teacher and the data to distil it on."""

    config: DistilConfig
    teacher: Bundle
    starts: Starts


def open_lesson(config: DistilConfig, *, say: Say | None = None, progress: Progress | None = None) -> Lesson:
    """The teacher and the data that `config` names."""
    teacher = open_bundle(config.teacher)
    check_teacher(teacher.manifest)
    if config.teacher_digest not in ("", teacher.digest):
        raise SettingsInvalid(
            f"{config.teacher} has the digest {teacher.digest[:16]}..., not {config.teacher_digest[:16]}...",
            hint="--force starts again with this model",
        )
    made = teacher.manifest
    found = {
        "teacher_digest": teacher.digest,
        "sample_kind": made.sample_kind,
        "soften_sigma": made.soften_sigma,
    }
    config = DistilConfig.model_validate({**config.model_dump(exclude_none=True), **found})
    return Lesson(config, teacher, open_starts(config, teacher, say=say, progress=progress))


def check_teacher(manifest: Manifest) -> None:
    """Return when a model can be distilled."""
    problem = ""
    if manifest.role != "generator":
        problem = "it is a classifier"
    elif not isinstance(manifest.network, MlpConfig | UNetConfig):
        problem = (
            f"its network is of kind {manifest.network.kind}, and flow maps are of the kinds mlp and unet"
        )
    elif manifest.is_flow_map:
        problem = "it is distilled already"
    elif manifest.parameterisation != "v" or manifest.learns_variance:
        problem = "it predicts more or something else than v, which the mean of v starts from"
    if problem:
        raise SettingsInvalid(
            f"{manifest.name} cannot be distilled: {problem}", hint="a model from ddib model train can be"
        )


class DistilTask:
    def __init__(self, config: DistilConfig, lesson: Lesson) -> None:
        self.config, self.lesson = config, lesson
        self.figures: dict[str, float] = {}
        self._network = _flow_map(lesson.teacher.manifest)
        self._distilled: Distilled | None = None
        self._pool: Pool | None = None
        self._held_out: Questions | None = None

    def initial_network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            network = build_network(self._network)
        network.load_state_dict({**network.state_dict(), **self.lesson.teacher.state})
        return self._laid_out(network).train()

    def averaged(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        return self._laid_out(network_with(self._network, state, device=device))

    def fetch(self, piece: Piece, device: torch.device) -> Questions:
        if self._pool is None:
            self._pool = self._opened(device)
        return self._pool.ask(piece.step, slice(piece.first, piece.stop))

    def loss(self, network: nn.Module, piece: Piece, samples: Questions) -> tuple[Tensor, Tensor]:
        del piece
        found = self._losses(network, samples)
        return found.sum() / self.config.batch, found

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        if self._held_out is None:
            self._held_out = self._held_out_questions(next(network.parameters()).device)
        count = len(self._held_out.x)
        parts = [slice(first, first + at_once) for first in range(0, count, at_once)]
        losses = [self._losses(network, self._held_out.part(part)).cpu() for part in parts]
        return float(torch.cat(losses).double().mean())

    def aside(self) -> None:
        """None: a flow map's latents differ with its evaluations, and only fixed bounds are for them."""

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        del folder
        if last:
            dtype = DTYPES[self.config.dtype]
            state = {name: value.to(dtype).float() for name, value in trainer.ema.state_dict().items()}
            network = self.averaged(state, trainer.world.device).eval()
            starts, most = self.lesson.starts, self.config.samples
            self._distilled = measured(self.lesson.teacher, network, starts, most, trainer.world.device)
        return ""

    def manifest(self) -> dict[str, Any]:
        made = self.lesson.teacher.manifest
        return {
            **{name: getattr(made, name) for name in _OF_THE_TEACHER},
            "network": self._network,
            "distilled": self._distilled,
        }

    def _opened(self, device: torch.device) -> Pool:
        config = self.config
        teacher = self._teacher(device)
        return Pool(
            teacher,
            seed=config.seed,
            batch=config.batch,
            uses=config.uses,
            evaluations=config.teacher_evaluations,
        )

    def _teacher(self, device: torch.device) -> Teacher:
        config, lesson = self.config, self.lesson
        return Teacher(
            lesson.teacher,
            lesson.starts,
            evaluations=config.teacher_evaluations,
            seed=config.seed,
            batch=config.batch,
            device=device,
            dtype=torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
        )

    def _held_out_questions(self, device: torch.device) -> Questions:
        teacher = self._teacher(device)
        numbers = math.prod(self.lesson.teacher.manifest.sample_shape)
        paths = teacher.held_out(max(1, min(HELD_OUT, HELD_OUT_NUMBERS // numbers)))
        generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
        u = torch.rand(2 * paths[0].x.shape[1], 4, generator=generator, dtype=torch.float64)
        return asked(paths, u, teacher.denoiser)

    def _losses(self, network: nn.Module, found: Questions) -> Tensor:
        """Squared error of the mean velocity of each question, (N,)."""
        x, extra = found.x, {} if found.labels is None else {"y": found.labels}
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            answer = network(x, found.times, to=found.to, **extra)
        squares = (answer.float() - found.target).square()
        losses: Tensor = squares.flatten(1).mean(1)
        return losses

    def _laid_out(self, network: nn.Module) -> nn.Module:
        return channels_last(network) if isinstance(self._network, UNetConfig) else network


def _flow_map(manifest: Manifest) -> MlpConfig | UNetConfig:
    network = manifest.network
    assert isinstance(network, MlpConfig | UNetConfig)  # `check_teacher`
    return network.model_copy(
        update={"flow_map": True, **({"dropout": 0.0} if hasattr(network, "dropout") else {})}
    )


def measured(
    teacher: Bundle, network: nn.Module, starts: Starts, most: int, device: torch.device
) -> Distilled:
    """Distances between the answers of a flow map and of its teacher, on the grid on which they are least."""
    manifest = teacher.manifest
    student = Denoiser(network, manifest.parameterisation, manifest.time_input)
    master = teacher.denoiser(device=device)
    found: dict[tuple[str, int], list[Tensor]] = {
        (grid, count): [] for grid in GRIDS for count in EVALUATIONS
    }
    clean = torch.from_numpy(starts.held_out[:most])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(_MEASURE_SEED))
    labels = None if starts.held_out_labels is None else torch.from_numpy(starts.held_out_labels[:most])
    schedule, sigma = teacher.schedule, manifest.soften_sigma
    for rows in _parts(clean):
        x = soften(clean[rows], sigma, noise[rows]).to(device)
        classes = labels is not None and manifest.num_classes is not None
        cond: Condition = {"y": labels[rows].to(device)} if classes and labels is not None else None
        # The softened sample is what is encoded, and so what a round trip comes back to.
        latent = _encode(x, master, schedule, REFERENCE, sigma, cond)
        back = decode(latent, master, schedule, REFERENCE, cond=cond)
        for (grid, count), kept in found.items():
            settings = SolverSettings(FLOW_MAP, evaluations=count, grid=grid)
            own = _encode(x, student, schedule, settings, sigma, cond)
            distances = (
                _distance(own, latent),
                _distance(decode(latent, student, schedule, settings, cond=cond), back),
                _distance(decode(own, student, schedule, settings, cond=cond), x),
            )
            kept.append(torch.stack(distances).cpu())
    errors = {
        grid: tuple(_summary(count, torch.cat(found[grid, count], dim=1).double()) for count in EVALUATIONS)
        for grid in GRIDS
    }
    best = min(GRIDS, key=lambda grid: errors[grid][-1].encode + errors[grid][-1].decode)
    return Distilled(
        teacher=teacher.digest,
        teacher_name=manifest.name,
        solver=REFERENCE.solver,
        evaluations=REFERENCE.evaluations,
        samples=len(clean),
        grid=best,
        errors=errors[best],
    )


def _encode(
    x: Tensor, denoiser: Denoiser, schedule: Schedule, settings: SolverSettings, sigma: float, cond: Condition
) -> Tensor:
    return integrate(plan(settings, schedule, soften_sigma=sigma).encoder(x, cond), denoiser)


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).flatten(1).square().mean(1).sqrt()


def _summary(evaluations: int, distances: Tensor) -> DistilledError:
    """Of distances (3, N): of latents, of samples, of round trips."""
    medians, high = distances.median(dim=1).values.tolist(), distances.quantile(0.95, dim=1).tolist()
    return DistilledError(
        evaluations=evaluations,
        encode=_short(medians[0]),
        encode_p95=_short(high[0]),
        decode=_short(medians[1]),
        decode_p95=_short(high[1]),
        round_trip=_short(medians[2]),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _parts(samples: Tensor) -> Iterator[slice]:
    rows = max(1, _AT_ONCE // samples[0].numel())
    for first in range(0, len(samples), rows):
        yield slice(first, first + rows)


def open_distil(
    config: DistilConfig, source: PictureSource | None, out: Path, say: Say | None, on_scan: OnScan | None
) -> Opened:
    del source
    if config.images is not None:
        require_outside(out, config.images)
    lesson = open_lesson(config, say=say, progress=on_scan)
    domain = lesson.teacher.manifest.domain
    return Opened(lesson.config, domain, lesson.starts.digest, lambda settled: DistilTask(settled, lesson))

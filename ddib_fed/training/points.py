"""Learning a model of points: of a synthetic domain without end, or of a user's file.

A user's points are normalised by one scalar mean and standard deviation, and a tenth of them is never trained on.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ddib_fed import datasets, metrics
from ddib_fed.data.points import name_file, parse_npy, refuse_picture
from ddib_fed.diffusion.denoiser import Denoiser, on_device
from ddib_fed.diffusion.plans import decode
from ddib_fed.diffusion.schedule import DiscreteSchedule, ScheduleConfig, schedule_from_config
from ddib_fed.errors import FileMissing, InputError
from ddib_fed.evaluation import sheets
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.config import MlpConfig, SyntheticConfig
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.objective import LambdaSampler, PointBatch, make_batch, make_step_batch
from ddib_fed.training.trainer import Piece, Task, Trainer

Floats = NDArray[np.float32]

MIN_POINTS = 100
HELD_OUT_SHARE = 0.1
MAX_BYTES = 4 << 30
MAX_POINTS = 100_000_000
DATA_COLUMNS = datasets.UNIFORMS_PER_POINT
_HELD_OUT_SEED = 2**63
_SPLIT_SEED = 7_130_211
_SAMPLE_SEED = 4_711


class PointSource(NamedTuple):
    dim: int
    mean: float
    std: float
    digest: str
    take: Callable[[NDArray[np.float64]], Floats]
    held_out: Floats
    train: Floats


class PointTask(Task):
    def __init__(self, config: TrainConfig, source: PointSource) -> None:
        dim, fields = source.dim, {name: config.network[name] for name in config.network if name != "public"}
        if config.public:
            super().__init__(config, SyntheticConfig(in_channels=dim, out_channels=dim, **fields))
        else:
            super().__init__(config, MlpConfig(dim=dim, width=config.width, blocks=config.blocks))
        self.source = source
        self._levels = ScheduleConfig(name=str(config.noise_schedule), steps=config.diffusion_steps)
        self._schedule = schedule_from_config(self._levels)
        self._lambdas = LambdaSampler(self._schedule)
        self._columns = DATA_COLUMNS + 2 * math.ceil(dim / 2) + 1
        self._held_out = self._held_out_batch()

    def fetch(self, piece: Piece, device: torch.device) -> PointBatch:
        config = self.config
        u = datasets.uniforms(config.seed, piece.step, config.batch, self._columns)
        x0 = self.source.take(u[:, :DATA_COLUMNS])
        return self._questions(x0, u, config.levels, config.reference, piece, device)

    def loss(self, network: nn.Module, piece: Piece, samples: PointBatch) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.network.get("dropout"):
            # The masks are the one thing that the cut of a batch changes.
            seeds = np.random.SeedSequence([config.seed, piece.step, piece.first])
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        with torch.autocast(samples.x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            answer = network(samples.x, samples.times, samples.rows)
        losses = functional.mse_loss(answer.float(), samples.target, reduction="none").mean(1)
        return losses.sum() / config.batch, losses

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        del at_once
        device = next(network.parameters()).device
        batch = self._held_out
        answer = network(batch.x.to(device), batch.times.to(device), batch.rows.to(device)).cpu()
        return float(torch.mean((answer - batch.target) ** 2))

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        if not last:
            return ""
        config, count = self.config, self.config.samples
        noise = torch.randn(count, self.source.dim, generator=torch.Generator().manual_seed(_SAMPLE_SEED))
        if self.source.dim > 1:  # ordered by the angle of the latent, so that colours show it
            noise = noise[torch.argsort(torch.atan2(noise[:, 1], noise[:, 0]))]
        made = self.manifest()
        denoiser = Denoiser(trainer.averaged().eval(), made["parameterisation"], made["time_input"])
        drawn: Floats = decode(noise.to(trainer.world.device), denoiser, self._schedule).cpu().numpy()
        real = self.source.held_out
        if config.domain is not None:
            real = metrics.reference_points(config.domain, count)
            floor = metrics.domain_sliced_w2_floor(config.domain, count)
        else:
            floor = metrics.sliced_w2_floor(real, min(count, len(real)))
        distance = metrics.sliced_w2(drawn, real)
        self.figures = {"sliced_w2": round(distance, 5), "sliced_w2_floor": round(floor, 5)}
        sheets.clouds([("data", real), ("model, by angle of the latent", drawn)], folder / "samples.png")
        return ""

    def manifest(self) -> dict[str, Any]:
        public = self.config.public
        return {
            "sample_shape": (self.source.dim,),
            "network": self.network,
            "parameterisation": "eps" if public else "v",
            "time_input": "timestep" if public else "lambda",
            "schedule": self._levels,
            "normalisation": Normalisation(mean=self.source.mean, std=self.source.std),
        }

    def _held_out_batch(self) -> PointBatch:
        """Return held-out points with their questions, with plain targets where there are too few for a posterior."""
        count = len(self.source.held_out)
        u = datasets.uniforms(_HELD_OUT_SEED, self.config.seed, count, self._columns)
        levels = min(self.config.levels, count)
        reference = self.config.reference if count % max(1, self.config.reference) == 0 else 0
        whole = Piece(0, 0, count)
        return self._questions(self.source.held_out, u, levels, reference, whole, torch.device("cpu"))

    def _questions(
        self,
        x0: Floats,
        u: NDArray[np.float64],
        levels: int,
        reference: int,
        piece: Piece,
        device: torch.device,
    ) -> PointBatch:
        """What is asked of noisy x0, and the answers: rows of a batch with points (B, D) and uniforms (B, columns)."""
        spread = torch.from_numpy((np.arange(levels) + u[:levels, -1]) / levels)
        pairs = range(DATA_COLUMNS, DATA_COLUMNS + self.source.dim, 2)
        own = u[piece.first : piece.stop]
        normals = np.concatenate([datasets.normals(own[:, i : i + 2]) for i in pairs], axis=1)
        noise = on_device(torch.from_numpy(normals[:, : self.source.dim]).float(), device)
        points = on_device(torch.from_numpy(x0), device)
        if self.config.public:
            assert isinstance(self._schedule, DiscreteSchedule)
            return make_step_batch(points, noise, spread, self._schedule, first=piece.first)
        lams = on_device(self._lambdas(spread), device)
        return make_batch(points, noise, lams, reference=reference, first=piece.first)


def open_points(config: TrainConfig) -> PointSource:
    """Return points of a synthetic domain, without end, or those of a file."""
    if config.domain is None:
        return points_source(Path(str(config.data)), config.batch)
    name = datasets.domain_name(config.domain)
    held_out = datasets.draw(name, config.batch, _HELD_OUT_SEED, step=config.seed)
    take = partial(datasets.from_uniforms, name)
    return PointSource(2, 0.0, 1.0, f"domain:{name}", take, held_out, held_out[:0])


def points_source(path: Path, held_out_points: int) -> PointSource:
    raw = read_points(path)
    wide = raw.astype(np.float64)
    if len(raw) < MIN_POINTS:
        problem = f"{path} holds {len(raw)} points; training needs at least {MIN_POINTS}"
        raise InputError(problem, hint="add points")
    spread = wide.std(axis=0)
    constant = np.flatnonzero(spread <= 1e-6 * max(float(spread.max()), float(np.abs(raw).max()) * 1e-6))
    if len(constant):
        columns = ", ".join(map(str, constant[:10].tolist()))
        problem = f"column {columns} of {path} is constant (counting from 0)"
        raise InputError(problem, hint="leave constant columns out: there is nothing in them to translate")
    mean, std = float(wide.mean()), float(wide.std())
    points = ((wide - mean) / std).astype(np.float32)
    points = points[np.random.default_rng(_SPLIT_SEED).permutation(len(points))]
    cut = int(len(points) * HELD_OUT_SHARE)
    kept, held_out = points[cut:], points[:cut]
    digest = hashlib.sha256(np.ascontiguousarray(raw).tobytes()).hexdigest()

    def take(u: NDArray[np.float64]) -> Floats:
        return kept[(u[:, 0] * len(kept)).astype(np.int64)]

    return PointSource(points.shape[1], mean, std, f"points:{digest}", take, held_out[:held_out_points], kept)


def read_points(path: Path, dim: int | None = None) -> Floats:
    """Read the array (N, D) of a .npy file, of dimension `dim` if that is given."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileMissing(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    try:
        refuse_picture(content)
        return parse_npy(content, max_bytes=MAX_BYTES, max_points=MAX_POINTS, dim=dim)
    except InputError as error:
        raise name_file(error, str(path)) from error

"""Distils models of points: a network encodes and decodes in 1, 2, 4 or 8 evaluations, learned from a teacher's paths.

Paths of the teacher's ODE lead from points and from noise; the network is asked the mean velocity between two nodes:
u(x_t, t, s) = (x_s - x_t) / (phi_s - phi_t),    u(x_t, t, t) = v(x_t, t)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddib_fed.datasets import UNIFORMS_PER_POINT, uniforms
from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.denoiser import Denoiser, network_times
from ddib_fed.diffusion.plans import FLOW_MAP, SolverSettings, decode, plan, soften
from ddib_fed.diffusion.schedule import LevelGrid
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.engine.model import DTYPES
from ddib_fed.errors import SettingsInvalid, ShapeMismatch
from ddib_fed.models.bundle import Bundle, open_bundle
from ddib_fed.models.manifest import Distilled, DistilledError, Manifest, carried_domain
from ddib_fed.networks.config import MlpConfig
from ddib_fed.training.config import DistilConfig
from ddib_fed.training.objective import LambdaSampler
from ddib_fed.training.points import PointSource, domain_source, points_source
from ddib_fed.training.run import OnScan, Opened, Say
from ddib_fed.training.sources import PictureSource
from ddib_fed.training.trainer import Piece, Task, Trainer

_OF_THE_TEACHER = (
    "sample_kind", "sample_shape", "parameterisation", "time_input", "schedule", "normalisation", "value_range",
    "soften_sigma", "data",
)  # fmt: skip
HELD_OUT_POINTS = 20_000
HELD_OUT = 512  # held-out points whose paths are asked for the held-out loss, at most
EVALUATIONS = (1, 2, 4, 8)
REFERENCE = SolverSettings("unipc", 3, 96)  # how the teacher answers: twice the default's evaluations
GRIDS = ("default", "uniform-lambda")  # where steps may end; neither is the better one for every model
MEMORY_BYTES, MOST_LIVE = 512 << 20, 8
"""Of the batches of paths that are kept, and how many these are at most."""
EVEN = 0.6  # share of a path's nodes that are spread evenly over lambda
JITTER = 0.5
"""How far nodes are moved, in their distance; two that nearly meet would leave a mean of rounding."""
STILL = 0.125
"""Share of questions whose step has no length: the flow map remains a model of velocities for the other solvers."""
_STARTS_SEED, _HELD_OUT, _HELD_OUT_SEED, _MEASURE_SEED = 2**63, 2**62, 91, 40_961
_COLUMNS = UNIFORMS_PER_POINT + 2
_TABLE = 4097


def open_distil(
    config: DistilConfig, source: PictureSource | None, out: Path, say: Say | None, on_scan: OnScan | None
) -> Opened:
    del source, out, say, on_scan
    teacher = open_bundle(config.teacher)
    made = teacher.manifest
    check_teacher(made)
    starts = open_starts(config, teacher)
    config = config.model_copy(update={"soften_sigma": made.soften_sigma})
    digest = f"{starts.digest} {teacher.digest}"
    return Opened(config, made.domain, digest, lambda one: DistilTask(one, teacher, starts))


def check_teacher(manifest: Manifest) -> None:
    problem = ""
    if not isinstance(manifest.network, MlpConfig):
        problem = f"its network is of kind {manifest.network.kind}, and flow maps are networks of points, of kind mlp"
    elif manifest.is_flow_map:
        problem = "it is distilled already"
    elif manifest.parameterisation != "v":
        problem = "it predicts something else than v, which the mean of v starts from"
    if problem:
        raise SettingsInvalid(
            f"{manifest.name} cannot be distilled: {problem}",
            hint="a model of points from ddib model train can be; for pictures ddib model tune learns fewer steps",
        )


def open_starts(config: DistilConfig, teacher: Bundle) -> PointSource:
    """Return the points that `config` names, in the teacher's units; without a name those that it was drawn from."""
    manifest = teacher.manifest
    domain = config.domain
    if config.data is None:
        domain = domain or carried_domain(manifest)
        if domain is None:
            raise SettingsInvalid(
                f"no package carries the samples that {manifest.name} was trained on, and none are named",
                hint="--data FILE.npy: the samples that it was trained on",
            )
        found = domain_source(domain, HELD_OUT_POINTS, _STARTS_SEED)
    else:
        found = points_source(config.data, HELD_OUT_POINTS)
    if (found.dim,) != tuple(manifest.sample_shape):
        problem = f"points of {found.dim} numbers where {manifest.name} takes {tuple(manifest.sample_shape)}"
        raise ShapeMismatch(problem, hint="name the samples that it was trained on")

    def own(points: NDArray[np.float32]) -> NDArray[np.float32]:
        return manifest.normalisation.apply(points.astype(np.float64) * found.std + found.mean)

    return found._replace(take=lambda u: own(found.take(u)), held_out=own(found.held_out))


class DistilTask(Task):
    config: DistilConfig

    def __init__(self, config: DistilConfig, teacher: Bundle, starts: PointSource) -> None:
        super().__init__(config, teacher.manifest.network.model_copy(update={"flow_map": True}))
        self.teacher, self.starts = teacher, starts
        self._distilled: Distilled | None = None
        self._paths: Paths | None = None
        self._held_out: Questions | None = None

    def initial_network(self) -> nn.Module:
        network = super().initial_network()
        network.load_state_dict({**network.state_dict(), **self.teacher.state})
        return network

    def fetch(self, piece: Piece, device: torch.device) -> Questions:
        if self._paths is None:
            self._paths = Paths(self.teacher, self.starts, self.config, device)
        return self._paths.ask(piece.step, slice(piece.first, piece.stop))

    def loss(self, network: nn.Module, piece: Piece, samples: Questions) -> tuple[Tensor, Tensor]:
        del piece
        found = self._losses(network, samples)
        return found.sum() / self.config.batch, found

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        del at_once
        if self._held_out is None:
            device = next(network.parameters()).device
            paths = Paths(self.teacher, self.starts, self.config, device)
            known = paths.held_out(HELD_OUT)
            generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
            u = torch.rand(2 * known[0].x.shape[1], 4, generator=generator, dtype=torch.float64)
            self._held_out = asked(known, u, paths.denoiser)
        return float(self._losses(network, self._held_out).double().mean())

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        del folder
        if last:
            dtype = DTYPES[self.config.dtype]
            state = {name: value.to(dtype).float() for name, value in trainer.ema.averages.items()}
            network = self.averaged(state, trainer.world.device).eval()
            clean = torch.from_numpy(self.starts.held_out[: self.config.samples])
            self._distilled = measured(self.teacher, network, clean, trainer.world.device)
        return ""

    def manifest(self) -> dict[str, Any]:
        made = self.teacher.manifest
        return {
            **{name: getattr(made, name) for name in _OF_THE_TEACHER},
            "network": self.network,
            "distilled": self._distilled,
        }

    def _losses(self, network: nn.Module, found: Questions) -> Tensor:
        """Return squared error of the mean velocity of each question, (N,)."""
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(found.x.device.type, torch.bfloat16, enabled=enabled):
            answer = network(found.x, found.times, to=found.to)
        losses: Tensor = (answer.float() - found.target).square().mean(1)
        return losses


def measured(teacher: Bundle, network: nn.Module, clean: Tensor, device: torch.device) -> Distilled:
    """Return distances between the answers of a flow map and of its teacher for points (N, D), on the better grid."""
    manifest, schedule = teacher.manifest, teacher.schedule
    student = Denoiser(network, manifest.parameterisation, manifest.time_input)
    master = teacher.denoiser(device=device)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(_MEASURE_SEED))
    # The softened sample is what is encoded, and so what a round trip comes back to.
    x = soften(clean, manifest.soften_sigma, noise).to(device)

    def encoded(denoiser: Denoiser, settings: SolverSettings) -> Tensor:
        planned = plan(settings, schedule, soften_sigma=manifest.soften_sigma)
        return integrate(x, planned.encoder, denoiser)

    latent = encoded(master, REFERENCE)
    back = decode(latent, master, schedule, REFERENCE)
    found: dict[str, list[DistilledError]] = {grid: [] for grid in GRIDS}
    for grid, errors in found.items():
        for count in EVALUATIONS:
            settings = SolverSettings(FLOW_MAP, evaluations=count, grid=grid)
            own = encoded(student, settings)
            pairs = (
                (own, latent),
                (decode(latent, student, schedule, settings), back),
                (decode(own, student, schedule, settings), x),
            )
            apart = torch.stack([(one - other).square().mean(1).sqrt() for one, other in pairs]).double()
            median, p95 = apart.median(dim=1).values, apart.quantile(0.95, dim=1)
            figures = {
                "encode": median[0], "encode_p95": p95[0], "decode": median[1], "decode_p95": p95[1],
                "round_trip": median[2],
            }  # fmt: skip
            rounded = {name: float(f"{float(value):.4g}") for name, value in figures.items()}
            errors.append(DistilledError(evaluations=count, **rounded))
    best = min(GRIDS, key=lambda grid: found[grid][-1].encode + found[grid][-1].decode)
    return Distilled(
        teacher=teacher.digest,
        teacher_name=manifest.name,
        solver=REFERENCE.solver,
        evaluations=REFERENCE.evaluations,
        samples=len(clean),
        grid=best,
        errors=tuple(found[best]),
    )


class Course(NamedTuple):
    """Paths of one direction through one grid: states (n + 1, N, D), velocities (n, N, D), levels (n + 1, 3)."""

    x: Tensor
    v: Tensor
    levels: Tensor


class Questions(NamedTuple):
    x: Tensor
    times: Tensor
    to: Tensor
    target: Tensor


class Paths:
    """Paths of a model, of which some batches are kept, and what is asked of them at each step."""

    def __init__(
        self, bundle: Bundle, starts: PointSource, config: DistilConfig, device: torch.device
    ) -> None:
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.denoiser = bundle.denoiser(dtype, device)
        self.schedule = bundle.schedule
        self._starts, self._config, self._device = starts, config, device
        self._sigma = bundle.manifest.soften_sigma
        highest = self.schedule.lambda_max
        self._first = min(highest, -math.log(self._sigma)) if self._sigma else highest
        lams = torch.linspace(highest, self.schedule.lambda_min, _TABLE, dtype=torch.float64)
        even = np.linspace(0.0, 1.0, _TABLE)
        trained = np.interp(
            -lams.numpy(), -LambdaSampler(self.schedule)(torch.from_numpy(even)).numpy(), even
        )
        self._places = EVEN * even + (1.0 - EVEN) * trained, lams.numpy()
        size = config.batch * (2 * config.teacher_evaluations + 1) * starts.dim * 4
        self._live = max(1, min(MOST_LIVE, MEMORY_BYTES // size))
        self._kept: dict[tuple[int, int, int], tuple[Course, Course]] = {}

    def ask(self, step: int, part: slice) -> Questions:
        config = self._config
        newest = step // config.uses
        number = max(0, newest - step % self._live)
        first, last = part.start // 2, (part.stop + 1) // 2
        for key in [key for key in self._kept if key[0] <= newest - self._live]:
            del self._kept[key]
        paths = self._kept.get((number, first, last))
        if paths is None:
            paths = self._kept[number, first, last] = self.batch(number, slice(first, last))
        u = torch.from_numpy(uniforms(config.seed + 1, step, config.batch, 4)[2 * first : 2 * last])
        found = asked(paths, u, self.denoiser)
        return Questions(*(each[part.start - 2 * first : part.stop - 2 * first] for each in found))

    def batch(self, number: int, part: slice) -> tuple[Course, Course]:
        """Return rows `part` of each direction of batch `number`: paths from data and paths from noise."""
        config = self._config
        half, inner = config.batch // 2, config.teacher_evaluations - 1
        u = uniforms(config.seed, number, config.batch, _COLUMNS)
        clean = torch.from_numpy(self._starts.take(u[:half, :UNIFORMS_PER_POINT]))
        generator = torch.Generator().manual_seed(_mixed(config.seed, number))
        noise = torch.randn(2 * half, *clean.shape[1:], generator=generator)
        jitter = torch.rand(2, inner, generator=generator, dtype=torch.float64)
        return (
            self._from_data(clean[part], noise[:half][part], jitter[0]),
            self._from_noise(noise[half:][part], jitter[1]),
        )

    def held_out(self, most: int) -> tuple[Course, Course]:
        """Return paths from the first `most` held-out points, and as many from noise; always the same."""
        clean = torch.from_numpy(self._starts.held_out[:most])
        generator = torch.Generator().manual_seed(_mixed(self._config.seed, _HELD_OUT))
        noise = torch.randn(2 * len(clean), *clean.shape[1:], generator=generator)
        even = torch.full((self._config.teacher_evaluations - 1,), 0.5, dtype=torch.float64)
        return (
            self._from_data(clean, noise[: len(clean)], even),
            self._from_noise(noise[len(clean) :], even),
        )

    def _from_data(self, clean: Tensor, noise: Tensor, jitter: Tensor) -> Course:
        return self._walk(soften(clean, self._sigma, noise), self._grid(self._first, jitter))

    def _from_noise(self, noise: Tensor, jitter: Tensor) -> Course:
        return self._walk(noise, self._grid(self.schedule.lambda_max, jitter).reversed())

    def _grid(self, first: float, jitter: Tensor) -> LevelGrid:
        """Nodes partly even in lambda and partly as in training, each moved within its share; jitter in [0, 1)."""
        n, (mass, lams) = len(jitter) + 1, self._places
        start = np.interp(-first, -lams, mass)
        places = (np.arange(1, n) + JITTER * (jitter.numpy() - 0.5)) / n
        inner = np.interp(start + (1.0 - start) * places, mass, lams)
        nodes = torch.from_numpy(np.concatenate([[first], inner, [self.schedule.lambda_min]]))
        return LevelGrid(self.schedule.levels(nodes))

    def _walk(self, x: Tensor, grid: LevelGrid) -> Course:
        """Integrate, and keep every state at which the network was asked, and its answer."""
        nodes, velocities = [], []

        def answered(x: Tensor, *query: Any) -> Tensor:
            v = self.denoiser(x, *query)
            nodes.append(x.clone())
            velocities.append(v.clone())
            return v

        nodes.append(integrate(x.to(self._device), solvers.unipc(grid, order=3), answered))
        levels = torch.tensor(grid.levels, dtype=torch.float64)
        return Course(torch.stack(nodes), torch.stack(velocities), levels)


def asked(paths: tuple[Course, Course], u: Tensor, denoiser: Denoiser) -> Questions:
    """Return one question of each path, the directions by turns."""
    pairs = zip(*(_of_path(path, u[k::2], denoiser) for k, path in enumerate(paths)), strict=True)
    return Questions(*(torch.stack([one, two], 1).flatten(0, 1) for one, two in pairs))


def _of_path(path: Course, u: Tensor, denoiser: Denoiser) -> Questions:
    n, device = len(path.levels) - 1, path.x.device
    mass = torch.cumsum(1.0 / torch.arange(1, n + 1, dtype=torch.float64), 0)
    gap = 1 + torch.searchsorted(mass / mass[-1], u[:, 0].contiguous(), right=True).clamp_max(n - 1)
    low = (u[:, 1] * (n - gap + 1)).long()
    still, backwards = u[:, 2] < STILL, u[:, 3] < 0.5
    here, there = torch.where(backwards, low + gap, low), torch.where(backwards, low, low + gap)
    here, there = torch.where(still, low, here), torch.where(still, low, there)
    phis = torch.atan2(path.levels[:, 1], path.levels[:, 0])
    span = phis[there] - phis[here]
    rows, start, end = (each.to(device) for each in (torch.arange(path.x.shape[1]), here, there))
    x, reached = path.x[start, rows], path.x[end, rows]
    mean = (reached - x) / torch.where(still, 1.0, span).to(device, x.dtype)[:, None]
    target = torch.where(still.to(device)[:, None], path.v[low.to(device), rows], mean)
    times = network_times(path.levels, denoiser.time_input).float().to(device)
    return Questions(x, times[start], times[end], target)


def _mixed(seed: int, number: int) -> int:
    mixed = np.random.SeedSequence([seed, number, 77]).generate_state(1, np.uint64)[0]
    return int(mixed >> 1)

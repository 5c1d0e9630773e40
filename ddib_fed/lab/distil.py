"""Distillation: a network that encodes and decodes in 1, 2, 4 or 8 evaluations, learned from a teacher's paths.

The samples are the party's own: of a synthetic domain, a user's points or pictures. Held-out ones are never trained on.
Paths of the teacher's ODE lead from them and from noise; what the network is asked is the mean velocity between two
nodes of one path:

u(x_t, t, s) = (x_s - x_t) / (phi_s - phi_t),    u(x_t, t, t) = v(x_t, t)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddib_fed.data import synthetic
from ddib_fed.data.folder import expand, require_outside
from ddib_fed.data.synthetic import UNIFORMS_PER_POINT, uniforms
from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.denoiser import Condition, Denoiser, network_times
from ddib_fed.diffusion.plans import FLOW_MAP, SolverSettings, decode, plan, soften
from ddib_fed.diffusion.schedule import LevelGrid, Schedule
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.errors import SettingsInvalid, ShapeMismatch
from ddib_fed.lab.config import DistilConfig
from ddib_fed.models.bundle import Bundle, open_bundle
from ddib_fed.models.manifest import Distilled, DistilledError, Manifest, carried_domain
from ddib_fed.networks.config import MlpConfig, UNetConfig, build_network, network_with
from ddib_fed.networks.spectrum import SpectralFrame, spectrum_of
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.objective import LambdaSampler
from ddib_fed.training.pictures import channels_last
from ddib_fed.training.points import points_source
from ddib_fed.training.run import DTYPES, OnScan, Opened, Say
from ddib_fed.training.sources import PictureSource, as_trained, open_source
from ddib_fed.training.trainer import Piece, Trainer

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Uniforms = NDArray[np.float64]

_OF_THE_TEACHER = (
    "sample_kind", "sample_shape", "parameterisation", "time_input", "schedule", "normalisation", "value_range",
    "soften_sigma", "picture", "classes", "data", "structure",
)  # fmt: skip
HELD_OUT_POINTS = 20_000
HELD_OUT, HELD_OUT_NUMBERS = 512, 1 << 17
"""Held-out samples whose paths are asked for the held-out loss, and numbers in them, at most."""
EVALUATIONS = (1, 2, 4, 8)
REFERENCE = SolverSettings("unipc", 3, 96)
"""How the teacher answers: twice the default's evaluations."""
GRIDS = ("default", "uniform-lambda")
"""Where steps may end; neither is the better one for every model."""
MEMORY_BYTES, MOST_LIVE = 512 << 20, 8
"""Of the batches of paths that are kept, and how many these are at most."""
EVEN = 0.6
"""Share of a path's nodes that are spread evenly over lambda."""
JITTER = 0.5
"""How far nodes are moved, in their distance; two that nearly meet would leave a mean of rounding."""
STILL = 0.125
"""Share of questions whose step has no length: the flow map remains a model of velocities for the other solvers."""
NULL_SHARE = 0.1
"""Share of paths without their class, where the teacher has a class for none."""
_AT_ONCE = 1 << 18
"""Numbers of the samples in one network call."""
_STARTS_SEED, _HELD_OUT, _HELD_OUT_SEED, _MEASURE_SEED = 2**63, 2**62, 91, 40_961
_COLUMNS = UNIFORMS_PER_POINT + 2
_CLASS, _DROP = UNIFORMS_PER_POINT, UNIFORMS_PER_POINT + 1
_TABLE = 4097


def open_distil(
    config: DistilConfig, source: PictureSource | None, out: Path, say: Say | None, on_scan: OnScan | None
) -> Opened:
    """The run with its teacher and its samples opened."""
    del source
    if config.images is not None:
        require_outside(out, config.images)
    teacher = open_bundle(config.teacher)
    made = teacher.manifest
    check_teacher(made)
    found = {"sample_kind": made.sample_kind, "soften_sigma": made.soften_sigma}
    config = DistilConfig.model_validate({**config.model_dump(exclude_none=True), **found})
    starts = open_starts(config, teacher, say=say, progress=on_scan)
    digest = f"{starts.digest} {teacher.digest}"
    return Opened(config, made.domain, digest, lambda one: DistilTask(one, teacher, starts))


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


@dataclass(frozen=True, slots=True)
class Starts:
    """Clean samples in the teacher's units, with labels where it has classes."""

    digest: str
    take: Callable[[Uniforms], tuple[Floats, Labels | None]]
    held_out: Floats
    held_out_labels: Labels | None = None


def open_starts(
    config: DistilConfig, teacher: Bundle, *, say: Say | None = None, progress: OnScan | None = None
) -> Starts:
    """The samples that `config` names; without a name those that packages carry, if the teacher was trained on them."""
    manifest = teacher.manifest
    points, domain = manifest.sample_kind == "point", config.domain
    right = "--data FILE.npy" if points else "--images FOLDER"
    if domain is None and config.data is None and config.images is None:
        domain = carried_domain(manifest)
        if domain is None:
            raise SettingsInvalid(
                f"no package carries the samples that {manifest.name} was trained on, and none are named",
                hint=f"{right}: the samples that it was trained on",
            )
    if (config.images if points else config.data) is not None:
        raise SettingsInvalid(f"{manifest.name} is a model of {manifest.sample_kind}s", hint=right)
    own = (manifest, domain)
    found = _points(config.data, *own) if points else _pictures(config, *own, say, progress)
    if found.held_out.shape[1:] != tuple(manifest.sample_shape):
        raise ShapeMismatch(
            f"samples of shape {found.held_out.shape[1:]} where {manifest.name} takes {tuple(manifest.sample_shape)}",
            hint="name the samples that it was trained on",
        )
    return found


def _points(data: Path | None, manifest: Manifest, domain: str | None) -> Starts:
    normal = manifest.normalisation
    if data is None:
        name = synthetic.domain_name(str(domain))
        held_out = synthetic.draw(name, HELD_OUT_POINTS, _STARTS_SEED)
        return Starts(f"domain:{name}", lambda u: (synthetic.from_uniforms(name, u), None), held_out)
    source = points_source(data, HELD_OUT_POINTS)

    def own(points: Floats) -> Floats:
        return normal.apply(points.astype(np.float64) * source.std + source.mean)

    return Starts(source.digest, lambda u: (own(source.take(u)), None), own(source.held_out))


def _pictures(
    config: DistilConfig, manifest: Manifest, domain: str | None, say: Say | None, progress: OnScan | None
) -> Starts:
    if config.images is None:
        reading = TrainConfig(kind="pictures", domain=domain)
    else:
        reading = as_trained(manifest, config.images, classes=config.classes, skip_bad=config.skip_bad)
    source = open_source(reading, say=say, progress=progress)
    classes, apply = manifest.num_classes, manifest.normalisation.apply
    if classes is not None and source.labels is None:
        raise SettingsInvalid(
            f"{manifest.name} has classes, and the pictures have none",
            hint="--classes folders or --classes prefix says where they are",
        )
    if classes is not None and (
        len(source.classes) != classes or manifest.classes not in ((), source.classes)
    ):
        raise SettingsInvalid(
            f"the classes of the pictures are not those of {manifest.name}",
            hint="name the pictures that it was trained on",
        )
    labels, held_out_labels = source.labels, source.held_out_labels
    if classes is None:
        labels = held_out_labels = None

    def take(u: Uniforms) -> tuple[Floats, Labels | None]:
        chosen = (u[:, 0] * len(source.train)).astype(np.int64)
        return apply(expand(source.train[chosen])), None if labels is None else labels[chosen]

    return Starts(source.digest, take, apply(expand(source.held_out)), held_out_labels)


class DistilTask:
    def __init__(self, config: DistilConfig, teacher: Bundle, starts: Starts) -> None:
        self.config, self.teacher, self.starts = config, teacher, starts
        self.figures: dict[str, float] = {}
        network = teacher.manifest.network
        assert isinstance(network, MlpConfig | UNetConfig)  # `check_teacher`
        dropout = {"dropout": 0.0} if hasattr(network, "dropout") else {}
        self._network = network.model_copy(update={"flow_map": True, **dropout})
        self._distilled: Distilled | None = None
        self._pool: PathPool | None = None
        self._held_out: Questions | None = None

    def initial_network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            network = build_network(self._network)
        network.load_state_dict({**network.state_dict(), **self.teacher.state})
        return self._laid_out(network).train()

    def averaged(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        return self._laid_out(network_with(self._network, state, device=device))

    def fetch(self, piece: Piece, device: torch.device) -> Questions:
        if self._pool is None:
            self._pool = PathPool(self._walker(device), self.config)
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
            starts, most = self.starts, self.config.samples
            self._distilled = measured(self.teacher, network, starts, most, trainer.world.device)
        return ""

    def manifest(self) -> dict[str, Any]:
        made = self.teacher.manifest
        return {
            **{name: getattr(made, name) for name in _OF_THE_TEACHER},
            "network": self._network,
            "distilled": self._distilled,
        }

    def _walker(self, device: torch.device) -> Teacher:
        dtype = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        return Teacher(self.teacher, self.starts, self.config, device, dtype)

    def _held_out_questions(self, device: torch.device) -> Questions:
        teacher = self._walker(device)
        numbers = math.prod(self.teacher.manifest.sample_shape)
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
    for rows in torch.split(torch.arange(len(clean)), max(1, _AT_ONCE // clean[0].numel())):
        x = soften(clean[rows], sigma, noise[rows]).to(device)
        cond: Condition = None if labels is None else {"y": labels[rows].to(device)}
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
    pairs = distances.median(dim=1).values.tolist(), distances.quantile(0.95, dim=1).tolist()
    (encode, decode, back), (encode_p95, decode_p95, _) = ([float(f"{x:.4g}") for x in row] for row in pairs)
    return DistilledError(
        evaluations=evaluations,
        encode=encode,
        encode_p95=encode_p95,
        decode=decode,
        decode_p95=decode_p95,
        round_trip=back,
    )


class Course(NamedTuple):
    """Paths of one direction through one grid."""

    x: Tensor
    v: Tensor
    levels: Tensor
    labels: Tensor | None

    @property
    def phis(self) -> Tensor:
        return torch.atan2(self.levels[:, 1], self.levels[:, 0])


class Questions(NamedTuple):
    """What a flow map is asked, and what it should answer."""

    x: Tensor
    times: Tensor
    to: Tensor
    target: Tensor
    labels: Tensor | None

    def part(self, rows: slice) -> Questions:
        """Some of them."""
        return Questions(*(None if each is None else each[rows] for each in self))  # type: ignore[arg-type]


class Teacher:
    """Walks the paths of a model."""

    def __init__(
        self,
        bundle: Bundle,
        starts: Starts,
        config: DistilConfig,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.bundle, self.starts = bundle, starts
        self.denoiser: Denoiser = bundle.denoiser(dtype, device)
        self.schedule = bundle.schedule
        self._evaluations, self._device = config.teacher_evaluations, device
        self._seed, self._batch = config.seed, config.batch
        self._places = _placement(self.schedule)
        spectrum = spectrum_of(self.denoiser.network)
        self._frame = None if spectrum is None else SpectralFrame(spectrum)
        softening, highest = bundle.manifest.soften_sigma, self.schedule.lambda_max
        self.first_lambda = min(highest, -math.log(softening)) if softening else highest

    def batch(self, number: int, part: slice) -> tuple[Course, Course]:
        """Rows `part` of each direction of batch `number`: paths from data and paths from noise."""
        u = uniforms(self._seed, number, self._batch, _COLUMNS)
        half = self._batch // 2
        clean, labels = self.starts.take(u[:half, :UNIFORMS_PER_POINT])
        generator = torch.Generator().manual_seed(_mixed(self._seed, number))
        noise = torch.randn(2 * half, *clean.shape[1:], generator=generator)
        jitter = torch.rand(2, self._evaluations - 1, generator=generator, dtype=torch.float64)
        count = self.bundle.manifest.num_classes
        any_class = None if count is None else (u[half:, _CLASS] * count).astype(np.int64)
        own = self._classes(labels, u[:half, _DROP], part)
        drawn = self._classes(any_class, u[half:, _DROP], part)
        return (
            self.from_data(torch.from_numpy(clean[part]), noise[:half][part], jitter[0], own),
            self.from_noise(noise[half:][part], jitter[1], drawn),
        )

    def held_out(self, most: int) -> tuple[Course, Course]:
        """Paths from the first `most` held-out samples, and as many from noise; always the same."""
        clean = torch.from_numpy(self.starts.held_out[:most])
        generator = torch.Generator().manual_seed(_mixed(self._seed, _HELD_OUT))
        noise = torch.randn(2 * len(clean), *clean.shape[1:], generator=generator)
        even = torch.full((self._evaluations - 1,), 0.5, dtype=torch.float64)
        labels = self.starts.held_out_labels
        own = None if labels is None else torch.from_numpy(labels[:most])
        return (
            self.from_data(clean, noise[: len(clean)], even, own),
            self.from_noise(noise[len(clean) :], even, own),
        )

    def from_data(self, clean: Tensor, noise: Tensor, jitter: Tensor, labels: Tensor | None) -> Course:
        sigma = self.bundle.manifest.soften_sigma
        return self._walk(soften(clean, sigma, noise), self._grid(self.first_lambda, jitter), labels)

    def from_noise(self, noise: Tensor, jitter: Tensor, labels: Tensor | None) -> Course:
        return self._walk(noise, self._grid(self.schedule.lambda_max, jitter).reversed(), labels)

    def _grid(self, first: float, jitter: Tensor) -> LevelGrid:
        """Nodes by `_placement`, each moved within its share; jitter (n - 1,) in [0, 1)."""
        n, (mass, lams) = len(jitter) + 1, self._places
        start = np.interp(-first, -lams, mass)
        places = (np.arange(1, n) + JITTER * (jitter.numpy() - 0.5)) / n
        inner = np.interp(start + (1.0 - start) * places, mass, lams)
        nodes = torch.from_numpy(np.concatenate([[first], inner, [self.schedule.lambda_min]]))
        return LevelGrid(self.schedule.levels(nodes))

    def _walk(self, x: Tensor, grid: LevelGrid, labels: Tensor | None) -> Course:
        """Integrate, and keep every state at which the network was asked, and its answer."""
        x = x.to(self._device)
        cond = None if labels is None else {"y": labels.to(self._device)}
        nodes, velocities = [], []
        with torch.no_grad():
            solver = (
                solvers.unipc(x, grid, order=3, cond=cond)
                if self._frame is None
                else solvers.unipc(x, grid, order=3, cond=cond, frame=self._frame)
            )
            query = next(solver)
            while True:
                v = self.denoiser(query.x, query.level, query.cond)
                nodes.append(query.x.clone())
                velocities.append(v.clone())
                try:
                    query = solver.send(v)
                except StopIteration as stop:
                    nodes.append(stop.value)
                    break
        levels = torch.tensor(grid.levels, dtype=torch.float64)
        return Course(
            torch.stack(nodes), torch.stack(velocities), levels, None if cond is None else cond["y"]
        )

    def _classes(self, labels: Labels | None, u: Uniforms, part: slice) -> Tensor | None:
        """The classes of rows `part`, a share of them the null class where there is one."""
        if labels is None:
            return None
        null = self.bundle.manifest.null_class
        labels = labels if null is None else np.where(u < NULL_SHARE, null, labels)
        return torch.from_numpy(labels[part].astype(np.int64))


class PathPool:
    """The live batches of paths, and what is asked of them at each step."""

    def __init__(self, teacher: Teacher, config: DistilConfig) -> None:
        self._teacher, self._seed, self._batch, self._uses = teacher, config.seed, config.batch, config.uses
        numbers = math.prod(teacher.bundle.manifest.sample_shape)
        size = config.batch * (2 * config.teacher_evaluations + 1) * numbers * 4
        self.live = max(1, min(MOST_LIVE, MEMORY_BYTES // size))
        self._kept: dict[tuple[int, int, int], tuple[Course, Course]] = {}

    def ask(self, step: int, part: slice) -> Questions:
        """Questions `part` of a step."""
        newest = step // self._uses
        number = max(0, newest - step % self.live)
        first, last = part.start // 2, (part.stop + 1) // 2
        for key in [key for key in self._kept if key[0] <= newest - self.live]:
            del self._kept[key]
        paths = self._kept.get((number, first, last))
        if paths is None:
            paths = self._teacher.batch(number, slice(first, last))
            self._kept[number, first, last] = paths
        u = torch.from_numpy(uniforms(self._seed + 1, step, self._batch, 4)[2 * first : 2 * last])
        found = asked(paths, u, self._teacher.denoiser)
        return found.part(slice(part.start - 2 * first, part.stop - 2 * first))


def asked(paths: tuple[Course, Course], u: Tensor, denoiser: Denoiser) -> Questions:
    """One question of each path, the directions by turns."""
    pairs = zip(*(_of_path(path, u[k::2], denoiser) for k, path in enumerate(paths)), strict=True)
    woven = (None if one is None else torch.stack([one, two], 1).flatten(0, 1) for one, two in pairs)
    return Questions(*woven)  # type: ignore[arg-type]


def _of_path(path: Course, u: Tensor, denoiser: Denoiser) -> Questions:
    n, device = len(path.levels) - 1, path.x.device
    mass = torch.cumsum(1.0 / torch.arange(1, n + 1, dtype=torch.float64), 0)
    gap = 1 + torch.searchsorted(mass / mass[-1], u[:, 0].contiguous(), right=True).clamp_max(n - 1)
    low = (u[:, 1] * (n - gap + 1)).long()
    still, backwards = u[:, 2] < STILL, u[:, 3] < 0.5
    here, there = torch.where(backwards, low + gap, low), torch.where(backwards, low, low + gap)
    here, there = torch.where(still, low, here), torch.where(still, low, there)
    span = path.phis[there] - path.phis[here]
    rows, start, end = (each.to(device) for each in (torch.arange(path.x.shape[1]), here, there))
    shape = (-1, *(1,) * (path.x.ndim - 2))
    x, reached = path.x[start, rows], path.x[end, rows]
    mean = (reached - x) / torch.where(still, 1.0, span).to(device, x.dtype).reshape(shape)
    target = torch.where(still.to(device).reshape(shape), path.v[low.to(device), rows], mean)
    times = network_times(path.levels, denoiser.time_input).float().to(device)
    return Questions(x, times[start], times[end], target, path.labels)


def _placement(schedule: Schedule) -> tuple[Uniforms, Uniforms]:
    lams = torch.linspace(schedule.lambda_max, schedule.lambda_min, _TABLE, dtype=torch.float64)
    sampler = LambdaSampler(schedule)
    even = torch.linspace(0.0, 1.0, _TABLE, dtype=torch.float64)
    trained = np.interp(-lams.numpy(), -sampler(even).numpy(), even.numpy())
    return EVEN * even.numpy() + (1.0 - EVEN) * trained, lams.numpy()


def _mixed(seed: int, number: int) -> int:
    mixed = np.random.SeedSequence([seed, number, 77]).generate_state(1, np.uint64)[0]
    return int(mixed >> 1)

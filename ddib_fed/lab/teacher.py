"""What a model is distilled on: samples, the paths of its ODE from them and from noise, and questions about these.

The samples are the party's own: of a synthetic domain, a user's points or pictures. Held-out ones are never trained on.

u(x_t, t, s) = (x_s - x_t) / (phi_s - phi_t),    u(x_t, t, t) = v(x_t, t)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.data import synthetic
from ddib_fed.data.folder import Progress, expand
from ddib_fed.data.synthetic import UNIFORMS_PER_POINT, uniforms
from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.bridge import soften
from ddib_fed.diffusion.denoiser import Denoiser, network_times
from ddib_fed.diffusion.grids import Grid, grid_of
from ddib_fed.diffusion.schedule import Schedule
from ddib_fed.errors import SettingsInvalid, ShapeMismatch
from ddib_fed.lab.config import DistilConfig
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.manifest import Manifest, carried_domain
from ddib_fed.networks.spectrum import SpectralFrame, spectrum_of
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.objective import LambdaSampler
from ddib_fed.training.points import points_source
from ddib_fed.training.sources import PictureSource, as_trained, open_source

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Say = Callable[[str], None]

HELD_OUT_POINTS = 20_000
_STARTS_SEED = 2**63
Uniforms = NDArray[np.float64]

MEMORY_BYTES = 512 << 20
"""Of paths that are kept."""
MOST_LIVE = 8
EVEN = 0.6
"""Share of a path's nodes that are spread evenly over lambda."""
JITTER = 0.5
"""How far nodes are moved, in their distance; two that nearly meet would leave a mean of rounding."""
STILL = 0.125
"""Share of questions whose step has no length: the flow map remains a model of velocities for the other solvers."""
NULL_SHARE = 0.1
"""Share of paths without their class, where the teacher has a class for none."""
_COLUMNS = UNIFORMS_PER_POINT + 2
_CLASS, _DROP = UNIFORMS_PER_POINT, UNIFORMS_PER_POINT + 1
_HELD_OUT = 2**62
_TABLE = 4097


@dataclass(frozen=True, slots=True)
class Starts:
    """Clean samples in the teacher's units."""

    digest: str
    take: Callable[[NDArray[np.float64]], tuple[Floats, Labels | None]]
    held_out: Floats
    held_out_labels: Labels | None = None


def open_starts(
    config: DistilConfig, teacher: Bundle, *, say: Say | None = None, progress: Progress | None = None
) -> Starts:
    """The samples that `config` names; without a name those that packages carry, if the teacher was trained on them."""
    manifest = teacher.manifest
    domain = config.domain
    if domain is None and config.data is None and config.images is None:
        domain = carried_domain(manifest)
        if domain is None:
            option = "--images FOLDER" if manifest.sample_kind == "picture" else "--data FILE.npy"
            raise SettingsInvalid(
                f"no package carries the samples that {manifest.name} was trained on, and none are named",
                hint=f"{option}: the samples that it was trained on",
            )
    if manifest.sample_kind == "point":
        if config.images is not None:
            raise SettingsInvalid(
                f"{manifest.name} is a model of points, and --images names pictures", hint="--data FILE.npy"
            )
        found = _of_points(config.data, domain, manifest)
    else:
        if config.data is not None:
            raise SettingsInvalid(
                f"{manifest.name} is a model of pictures, and --data names points", hint="--images FOLDER"
            )
        found = _of_pictures(config, domain, manifest, say, progress)
    if found.held_out.shape[1:] != tuple(manifest.sample_shape):
        raise ShapeMismatch(
            f"samples of shape {found.held_out.shape[1:]} where {manifest.name} takes {tuple(manifest.sample_shape)}",
            hint="name the samples that it was trained on",
        )
    return found


def _of_points(data: Path | None, domain: str | None, manifest: Manifest) -> Starts:
    normal = manifest.normalisation
    if data is None:
        name = synthetic.domain_name(str(domain))
        held_out = synthetic.draw(name, HELD_OUT_POINTS, _STARTS_SEED)
        return Starts(f"domain:{name}", lambda u: (synthetic.from_uniforms(name, u), None), held_out)
    source = points_source(data, HELD_OUT_POINTS)

    def own(points: Floats) -> Floats:
        return normal.apply(points.astype(np.float64) * source.std + source.mean)

    return Starts(source.digest, lambda u: (own(source.take(u)), None), own(source.held_out))


def _of_pictures(
    config: DistilConfig, domain: str | None, manifest: Manifest, say: Say | None, progress: Progress | None
) -> Starts:
    source = open_source(_reading(config, domain, manifest), say=say, progress=progress)
    _check_classes(source, manifest)
    apply = manifest.normalisation.apply

    def take(u: NDArray[np.float64]) -> tuple[Floats, Labels | None]:
        chosen = (u[:, 0] * len(source.train)).astype(np.int64)
        labels = None if source.labels is None else source.labels[chosen]
        return apply(expand(source.train[chosen])), labels

    return Starts(source.digest, take, apply(expand(source.held_out)), source.held_out_labels)


def _reading(config: DistilConfig, domain: str | None, manifest: Manifest) -> TrainConfig:
    if config.images is None:
        return TrainConfig(kind="pictures", domain=domain)
    return as_trained(manifest, config.images, classes=config.classes, skip_bad=config.skip_bad)


def _check_classes(source: PictureSource, manifest: Manifest) -> None:
    if manifest.num_classes is None:
        return
    if source.labels is None:
        raise SettingsInvalid(
            f"{manifest.name} has classes, and the pictures have none",
            hint="--classes folders or --classes prefix says where they are",
        )
    if len(source.classes) != manifest.num_classes or (
        manifest.classes and source.classes != manifest.classes
    ):
        raise SettingsInvalid(
            f"the classes of the pictures are not those of {manifest.name}",
            hint="name the pictures that it was trained on",
        )


@dataclass(frozen=True, slots=True)
class Course:
    """Paths of one direction through one grid."""

    x: Tensor
    v: Tensor
    levels: Tensor
    labels: Tensor | None

    @property
    def phis(self) -> Tensor:
        return torch.atan2(self.levels[:, 1], self.levels[:, 0])


@dataclass(frozen=True, slots=True)
class Questions:
    """What a flow map is asked, and what it should answer."""

    x: Tensor
    times: Tensor
    to: Tensor
    target: Tensor
    spans: Tensor
    labels: Tensor | None

    def part(self, rows: slice) -> Questions:
        """Some of them."""
        labels = None if self.labels is None else self.labels[rows]
        return Questions(
            self.x[rows], self.times[rows], self.to[rows], self.target[rows], self.spans[rows], labels
        )


class Teacher:
    """Walks the paths of a model."""

    def __init__(
        self,
        bundle: Bundle,
        starts: Starts,
        *,
        evaluations: int,
        seed: int,
        batch: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.bundle, self.starts = bundle, starts
        self.denoiser: Denoiser = bundle.denoiser(dtype, device)
        self.schedule = bundle.schedule
        self._evaluations, self._seed, self._batch, self._device = evaluations, seed, batch, device
        self._places = _placement(self.schedule)
        spectrum = spectrum_of(self.denoiser.network)
        self._frame = None if spectrum is None else SpectralFrame(spectrum)
        softening = bundle.manifest.soften_sigma
        self.first_lambda = (
            min(self.schedule.lambda_max, -math.log(softening)) if softening else (self.schedule.lambda_max)
        )

    def batch(self, number: int, part: slice) -> tuple[Course, Course]:
        """Rows `part` of each direction of batch `number`: paths from data and paths from noise."""
        u = uniforms(self._seed, number, self._batch, _COLUMNS)
        half = self._batch // 2
        clean, labels = self.starts.take(u[:half, :UNIFORMS_PER_POINT])
        generator = torch.Generator().manual_seed(_mixed(self._seed, number))
        noise = torch.randn(2 * half, *clean.shape[1:], generator=generator)
        jitter = torch.rand(2, self._evaluations - 1, generator=generator, dtype=torch.float64)
        own = self._classes(labels, u[:half, _DROP], part)
        drawn = self._classes(self._any_class(u[half:, _CLASS]), u[half:, _DROP], part)
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
        own = (
            None
            if labels is None or self.bundle.manifest.num_classes is None
            else torch.from_numpy(labels[:most])
        )
        return (
            self.from_data(clean, noise[: len(clean)], even, own),
            self.from_noise(noise[len(clean) :], even, own),
        )

    def from_data(self, clean: Tensor, noise: Tensor, jitter: Tensor, labels: Tensor | None) -> Course:
        sigma = self.bundle.manifest.soften_sigma
        return self._walk(soften(clean, sigma, noise), self._grid(self.first_lambda, jitter), labels)

    def from_noise(self, noise: Tensor, jitter: Tensor, labels: Tensor | None) -> Course:
        return self._walk(noise, self._grid(self.schedule.lambda_max, jitter).reversed(), labels)

    def _grid(self, first: float, jitter: Tensor) -> Grid:
        """Nodes by `_placement`, each moved within its share; jitter (n - 1,) in [0, 1)."""
        n, (mass, lams) = len(jitter) + 1, self._places
        start = np.interp(-first, -lams, mass)
        places = (np.arange(1, n) + JITTER * (jitter.numpy() - 0.5)) / n
        inner = np.interp(start + (1.0 - start) * places, mass, lams)
        nodes = torch.from_numpy(np.concatenate([[first], inner, [self.schedule.lambda_min]]))
        return grid_of(self.schedule, self.schedule.levels(nodes))

    def _walk(self, x: Tensor, grid: Grid, labels: Tensor | None) -> Course:
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
        manifest = self.bundle.manifest
        if labels is None or manifest.num_classes is None:
            return None
        if manifest.null_class is not None:
            labels = np.where(u < NULL_SHARE, manifest.null_class, labels)
        return torch.from_numpy(labels[part].astype(np.int64))

    def _any_class(self, u: Uniforms) -> Labels | None:
        count = self.bundle.manifest.num_classes
        return None if count is None else (u * count).astype(np.int64)


class Pool:
    """The live batches of paths, and what is asked of them at each step."""

    def __init__(self, teacher: Teacher, *, seed: int, batch: int, uses: int, evaluations: int) -> None:
        self._teacher, self._seed, self._batch, self._uses = teacher, seed, batch, uses
        numbers = math.prod(teacher.bundle.manifest.sample_shape)
        size = batch * (2 * evaluations + 1) * numbers * 4
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
    columns = [_of_path(path, u[k::2], denoiser) for k, path in enumerate(paths)]
    woven = [torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(*(c[:5] for c in columns), strict=True)]
    labels = [column[5] for column in columns]
    both = (
        None if labels[0] is None or labels[1] is None else torch.stack([labels[0], labels[1]], 1).flatten()
    )
    return Questions(woven[0], woven[1], woven[2], woven[3], woven[4], both)


def _of_path(
    path: Course, u: Tensor, denoiser: Denoiser
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    n, device = len(path.levels) - 1, path.x.device
    mass = torch.cumsum(1.0 / torch.arange(1, n + 1, dtype=torch.float64), 0)
    gap = 1 + torch.searchsorted(mass / mass[-1], u[:, 0].contiguous(), right=True).clamp_max(n - 1)
    low = (u[:, 1] * (n - gap + 1)).long()
    still, backwards = u[:, 2] < STILL, u[:, 3] < 0.5
    high = low + gap
    here, there = torch.where(backwards, high, low), torch.where(backwards, low, high)
    here = torch.where(still, low, here)
    there = torch.where(still, low, there)
    rows = torch.arange(path.x.shape[1])
    phis = path.phis
    span = phis[there] - phis[here]
    shape = (-1, *(1,) * (path.x.ndim - 2))
    x, reached = path.x[here.to(device), rows.to(device)], path.x[there.to(device), rows.to(device)]
    divisor = torch.where(still, 1.0, span).to(device, x.dtype).reshape(shape)
    mean = (reached - x) / divisor
    target = torch.where(still.to(device).reshape(shape), path.v[low.to(device), rows.to(device)], mean)
    times = network_times(path.levels, denoiser.time_input).float().to(device)
    return (
        x, times[here.to(device)], times[there.to(device)], target, span.abs().float().to(device), path.labels
    )  # fmt: skip


def _placement(schedule: Schedule) -> tuple[Uniforms, Uniforms]:
    lams = torch.linspace(schedule.lambda_max, schedule.lambda_min, _TABLE, dtype=torch.float64)
    sampler = LambdaSampler(schedule)
    even = torch.linspace(0.0, 1.0, _TABLE, dtype=torch.float64)
    trained = np.interp(-lams.numpy(), -sampler(even).numpy(), even.numpy())
    return EVEN * even.numpy() + (1.0 - EVEN) * trained, lams.numpy()


def _mixed(seed: int, number: int) -> int:
    mixed = np.random.SeedSequence([seed, number, 77]).generate_state(1, np.uint64)[0]
    return int(mixed >> 1)

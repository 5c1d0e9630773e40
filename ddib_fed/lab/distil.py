"""Distils models of points: a network encodes and decodes in 1, 2, 4 or 8 evaluations, learned from a teacher's paths.

Paths of the teacher's ODE lead from points and from noise; the network is asked the mean velocity between two nodes:
u(x_t, t, s) = (x_s - x_t) / (phi_s - phi_t),    u(x_t, t, t) = v(x_t, t)
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddib_fed import Model, Opened, Settings, Task, datasets
from ddib_fed.errors import InputError, SettingsInvalid, ShapeMismatch
from ddib_fed.importing import Manifest, make_bundle
from ddib_fed.lab.training import DistilConfig
from ddib_fed.lab.tuning import noise, softened

Floats = NDArray[np.float32]
_OF_THE_TEACHER = (
    "sample_kind", "sample_shape", "parameterisation", "time_input", "schedule", "normalisation", "value_range",
    "soften_sigma", "data",
)  # fmt: skip
HELD_OUT_POINTS = 20_000
HELD_OUT = 512  # held-out points whose paths are asked for the held-out loss, at most
EVALUATIONS = (1, 2, 4, 8)
REFERENCE = Settings("unipc", 3, 96)  # how the teacher answers: twice the default's evaluations
GRIDS = ("default", "uniform-lambda")  # where steps may end; neither is the better one for every model
MEMORY_BYTES, MOST_LIVE = 512 << 20, 8
"""Of the batches of paths that are kept, and how many these are at most."""
EVEN = 0.6  # share of a path's nodes that are spread evenly over lambda
JITTER = 0.5
"""How far nodes are moved, in their distance; two that nearly meet would leave a mean of rounding."""
STILL = 0.125
"""Share of questions whose step has no length: the flow map remains a model of velocities for the other solvers."""
_STARTS_SEED, _HELD_OUT, _HELD_OUT_SEED, _MEASURE_SEED = 2**63, 2**62, 91, 40_961
_COLUMNS = datasets.UNIFORMS_PER_POINT + 2
_TABLE = 4096
FEWEST, MOST = 100, 10**8  # points of a file
MOST_LAMBDA = 20.0  # that a network is asked for


class Starts(NamedTuple):
    """Points in the teacher's units: `take` makes them of uniforms (N, columns)."""

    digest: str
    take: Callable[[NDArray[np.float64]], Floats]
    held_out: Floats


def open_distil(config: DistilConfig, *_: object) -> Opened:
    teacher = Model.open(config.teacher)
    check_teacher(teacher.manifest)
    starts = open_starts(config, teacher)
    config = config.model_copy(update={"soften_sigma": teacher.manifest.soften_sigma})
    digest = f"{starts.digest} {teacher.digest}"
    return Opened(config, teacher.domain, digest, lambda one: DistilTask(one, teacher, starts))


def check_teacher(manifest: Manifest) -> None:
    kind, problem = manifest.network.kind, ""
    if kind != "mlp":
        problem = f"its network is of kind {kind}, and flow maps are networks of points, of kind mlp"
    elif manifest.is_flow_map:
        problem = "it is distilled already"
    elif manifest.parameterisation != "v" or manifest.time_input != "lambda":
        problem = "it predicts something else than v at lambda, which the mean of v starts from"
    if problem:
        raise SettingsInvalid(
            f"{manifest.name} cannot be distilled: {problem}",
            hint="a model of points from ddib model train can be; for pictures ddib model tune learns fewer steps",
        )


def open_starts(config: DistilConfig, teacher: Model) -> Starts:
    """Return the points that `config` names; without a name those that the teacher was drawn from."""
    domain = config.domain
    if domain is None and config.data is None:
        domain = teacher.data().name
    if domain is not None:
        name = datasets.domain_name(domain)
        held_out = datasets.draw(name, HELD_OUT_POINTS, _STARTS_SEED)
        if held_out.shape[1:] != teacher.shape:
            problem = f"points of {name} where {teacher.manifest.name} takes {teacher.shape}"
            raise ShapeMismatch(problem, hint="name the samples that it was trained on")
        take: Callable[[NDArray[np.float64]], Floats] = partial(datasets.from_uniforms, name)
        digest = f"domain:{name}"
    else:
        own = teacher.data(config.data, train=MOST * 9 // 10, held_out=MOST // 10)
        kept, held_out = own.train, own.held_out[:HELD_OUT_POINTS]
        if len(kept) < FEWEST:
            problem = f"{own.name} holds {len(kept)} points to train on; at least {FEWEST} are needed"
            raise InputError(problem, hint="add points")
        digest = f"points:{hashlib.sha256(kept.tobytes()).hexdigest()}"

        take = partial(_drawn, kept)
    return Starts(digest, lambda u: teacher.units(take(u)), teacher.units(held_out))


def _drawn(points: Floats, u: NDArray[np.float64]) -> Floats:
    return points[(u[:, 0] * len(points)).astype(np.int64)]


class DistilTask(Task):
    config: DistilConfig

    def __init__(self, config: DistilConfig, teacher: Model, starts: Starts) -> None:
        super().__init__(config, teacher.manifest.network.model_copy(update={"flow_map": True}))
        self.teacher, self.starts = teacher, starts
        self._distilled: dict[str, Any] | None = None
        self._paths: Paths | None = None
        self._held_out: Questions | None = None

    def initial_network(self) -> nn.Module:
        network = super().initial_network()
        network.load_state_dict({**network.state_dict(), **self.teacher.bundle.state})
        return network

    def fetch(self, piece: Any, device: torch.device) -> "Questions":
        if self._paths is None:
            self._paths = Paths(self.teacher, self.starts, self.config, device)
        return self._paths.ask(piece.step, slice(piece.first, piece.stop))

    def loss(self, network: nn.Module, piece: Any, samples: "Questions") -> tuple[Tensor, Tensor]:
        del piece
        losses = self._losses(network, samples)
        return losses.sum() / self.config.batch, losses

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        del at_once
        if self._held_out is None:
            device = next(network.parameters()).device
            paths = Paths(self.teacher, self.starts, self.config, device)
            known = paths.held_out(HELD_OUT)
            generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
            u = torch.rand(2 * known[0].x.shape[1], 4, generator=generator, dtype=torch.float64)
            self._held_out = asked(known, u)
        return float(self._losses(network, self._held_out).double().mean())

    def show(self, trainer: Any, folder: Path, *, last: bool) -> str:
        del folder
        if last:
            clean = self.starts.held_out[: self.config.samples]
            self._distilled = measured(self.teacher, self._student(trainer.averaged()), clean)
        return ""

    def manifest(self) -> dict[str, Any]:
        made = self.teacher.manifest
        return {
            **{name: getattr(made, name) for name in _OF_THE_TEACHER},
            "network": self.network,
            "distilled": self._distilled,
        }

    def _student(self, network: nn.Module) -> Model:
        """Return the model of these weights as it will be stored."""
        dtype, known = getattr(torch, self.config.dtype), self.teacher.manifest
        state = {name: value.to("cpu", dtype) for name, value in network.state_dict().items()}
        nothing = dict.fromkeys(("encode", "encode_p95", "decode", "decode_p95", "round_trip"), 0.0)
        about = {"teacher": self.teacher.digest, "teacher_name": known.name, "samples": 1, "grid": GRIDS[0]}
        about |= {"solver": REFERENCE.solver, "evaluations": REFERENCE.evaluations}
        about |= {"errors": ({"evaluations": 1, **nothing},)}
        fields = {**known.model_dump(include={"name", "domain", "training", "created"}), **self.manifest()}
        manifest = Manifest.model_validate({**fields, "distilled": about})
        return Model(make_bundle(manifest, state), device=str(next(network.parameters()).device))

    def _losses(self, network: nn.Module, found: "Questions") -> Tensor:
        """Return squared error of the mean velocity of each question, (N,)."""
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(found.x.device.type, torch.bfloat16, enabled=enabled):
            answer = network(found.x, found.times, to=found.to)
        losses: Tensor = (answer.float() - found.target).square().mean(1)
        return losses


def measured(teacher: Model, student: Model, clean: Floats) -> dict[str, Any]:
    """Return distances between the answers of a flow map and of its teacher for points (N, D), on the better grid."""
    sigma = teacher.manifest.soften_sigma
    # The softened sample is what is encoded, and so what a round trip comes back to.
    x = softened(clean, sigma, noise(torch.from_numpy(clean), _MEASURE_SEED).numpy())
    latent = teacher.integrate(x, REFERENCE, sigma=sigma)
    back = teacher.integrate(latent, REFERENCE, back=True)
    measures: dict[str, list[dict[str, Any]]] = {grid: [] for grid in GRIDS}
    for grid, errors in measures.items():
        for count in EVALUATIONS:
            settings = Settings("flow-map", evaluations=count, grid=grid)
            own = student.integrate(x, settings, sigma=sigma)
            pairs = (
                (own, latent),
                (student.integrate(latent, settings, back=True), back),
                (student.integrate(own, settings, back=True), x),
            )
            apart = np.array([np.sqrt(np.square(one - other).mean(1)) for one, other in pairs], np.float64)
            median, p95 = np.median(apart, axis=1), np.quantile(apart, 0.95, axis=1)
            figures = {
                "encode": median[0], "encode_p95": p95[0], "decode": median[1], "decode_p95": p95[1],
                "round_trip": median[2],
            }  # fmt: skip
            rounded = {name: float(f"{float(value):.4g}") for name, value in figures.items()}
            errors.append({"evaluations": count, **rounded})
    best = min(GRIDS, key=lambda grid: measures[grid][-1]["encode"] + measures[grid][-1]["decode"])
    return {
        "teacher": teacher.digest,
        "teacher_name": teacher.manifest.name,
        "solver": REFERENCE.solver,
        "evaluations": REFERENCE.evaluations,
        "samples": len(clean),
        "grid": best,
        "errors": measures[best],
    }


class Course(NamedTuple):
    """Paths of one direction through one grid: states (n + 1, N, D), velocities (n, N, D), levels lambda (n + 1,)."""

    x: Tensor
    v: Tensor
    lams: Tensor


class Questions(NamedTuple):
    x: Tensor
    times: Tensor
    to: Tensor
    target: Tensor


class Paths:
    """Paths of a model, of which some batches are kept, and what is asked of them at each step."""

    def __init__(self, teacher: Model, starts: Starts, config: DistilConfig, device: torch.device) -> None:
        self._teacher = Model(teacher.bundle, device=str(device), dtype=config.precision)
        self._starts, self._config = starts, config
        self._sigma = teacher.manifest.soften_sigma
        nodes = np.array(teacher.levels(Settings(evaluations=_TABLE)))
        self._highest, self._lowest = float(nodes[0]), float(nodes[-1])
        self._first = teacher.levels(Settings(evaluations=1), sigma=self._sigma)[0]
        # As training spreads its levels: half as the default grid has them, half even in the angle.
        even, angle = np.linspace(0.0, 1.0, _TABLE + 1), np.arctan(np.exp(-nodes))
        shares = 0.5 * even + 0.5 * (angle - angle[0]) / (angle[-1] - angle[0])
        lams = np.linspace(self._highest, self._lowest, _TABLE + 1)
        self._places = EVEN * even + (1.0 - EVEN) * np.interp(-lams, -nodes, shares), lams
        size = config.batch * (2 * config.teacher_evaluations + 1) * starts.held_out.shape[1] * 4
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
        u = torch.from_numpy(datasets.uniforms(config.seed + 1, step, config.batch, 4)[2 * first : 2 * last])
        answers = asked(paths, u)
        return Questions(*(each[part.start - 2 * first : part.stop - 2 * first] for each in answers))

    def batch(self, number: int, part: slice) -> tuple[Course, Course]:
        """Return rows `part` of each direction of batch `number`: paths from data and paths from noise."""
        config = self._config
        half, inner = config.batch // 2, config.teacher_evaluations - 1
        u = datasets.uniforms(config.seed, number, config.batch, _COLUMNS)
        clean = torch.from_numpy(self._starts.take(u[:half, : datasets.UNIFORMS_PER_POINT]))
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
        return self._walk(softened(clean, self._sigma, noise), self._grid(self._first, jitter))

    def _from_noise(self, noise: Tensor, jitter: Tensor) -> Course:
        return self._walk(noise, self._grid(self._highest, jitter).flip(0))

    def _grid(self, first: float, jitter: Tensor) -> Tensor:
        """Return levels partly even in lambda, partly as in training, each moved by jitter in [0, 1)."""
        n, (mass, lams) = len(jitter) + 1, self._places
        start = np.interp(-first, -lams, mass)
        places = (np.arange(1, n) + JITTER * (jitter.numpy() - 0.5)) / n
        inner = np.interp(start + (1.0 - start) * places, mass, lams)
        return torch.from_numpy(np.concatenate([[first], inner, [self._lowest]]))

    def _walk(self, x: Tensor, lams: Tensor) -> Course:
        with torch.no_grad():
            states, velocities = zip(*self._teacher.walk(x, lams), strict=True)
        return Course(torch.stack(states), torch.stack(velocities[:-1]), lams)


def asked(paths: tuple[Course, Course], u: Tensor) -> Questions:
    """Return one question of each path, the directions by turns."""
    pairs = zip(*(_of_path(path, u[k::2]) for k, path in enumerate(paths)), strict=True)
    return Questions(*(torch.stack([one, two], 1).flatten(0, 1) for one, two in pairs))


def _of_path(path: Course, u: Tensor) -> Questions:
    n, device = len(path.lams) - 1, path.x.device
    mass = torch.cumsum(1.0 / torch.arange(1, n + 1, dtype=torch.float64), 0)
    gap = 1 + torch.searchsorted(mass / mass[-1], u[:, 0].contiguous(), right=True).clamp_max(n - 1)
    low = (u[:, 1] * (n - gap + 1)).long()
    still, backwards = u[:, 2] < STILL, u[:, 3] < 0.5
    here, there = torch.where(backwards, low + gap, low), torch.where(backwards, low, low + gap)
    here, there = torch.where(still, low, here), torch.where(still, low, there)
    phis = torch.atan(torch.exp(-path.lams))
    span = phis[there] - phis[here]
    rows, start, end = (each.to(device) for each in (torch.arange(path.x.shape[1]), here, there))
    x, reached = path.x[start, rows], path.x[end, rows]
    mean = (reached - x) / torch.where(still, 1.0, span).to(device, x.dtype)[:, None]
    target = torch.where(still.to(device)[:, None], path.v[low.to(device), rows], mean)
    times = path.lams.clamp(-MOST_LAMBDA, MOST_LAMBDA).float().to(device)
    return Questions(x, times[start], times[end], target)


def _mixed(seed: int, number: int) -> int:
    mixed = np.random.SeedSequence([seed, number, 77]).generate_state(1, np.uint64)[0]
    return int(mixed >> 1)

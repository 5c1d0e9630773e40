"""Colour transfer between two photographs with their models, compared with optimal transport.

z = ODESolve(x; v_content, sigma_s -> sigma_max),   y = ODESolve(z; v_reference, sigma_max -> sigma_s)
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.data.points import to_npy
from ddib_fed.data.shipped import package_folder
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import Plan, SolverSettings, check_settings, plan
from ddib_fed.engine.arrays import Counter
from ddib_fed.engine.local_party import POINTS_TOGETHER
from ddib_fed.engine.model import DomainModel
from ddib_fed.errors import FileMissing, InputError, UsageError, extra
from ddib_fed.evaluation.metrics import cycle_error, sliced_w2
from ddib_fed.files import model_folder, write_file, write_json
from ddib_fed.models.bundle import Bundle
from ddib_fed.networks.placement import torch_threads
from ddib_fed.processes import require_alone
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train

Floats = NDArray[np.float64]
Space = Literal["rgb", "lab"]

SPACES: tuple[Space, ...] = ("rgb", "lab")
MIN_COLOURS = 50
"""Distinct colours below which there is nothing to learn a density of."""

# IEC 61966-2-1: linear sRGB to CIE XYZ; its white (the row sums) is D65.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _XYZ.sum(axis=1)
_DELTA = 6 / 29


@dataclass(frozen=True, slots=True)
class Packaged:
    """A photograph that a package carries."""

    package: str
    file: str
    credit: str


def _sklearn(name: str, page: str) -> Packaged:
    credit = f"{name}.jpg by {page.partition('/')[0]} (flickr.com/photos/{page}), CC BY 2.0, as carried by scikit-learn"
    return Packaged("sklearn", f"datasets/images/{name}.jpg", credit)


def _skimage(file: str, credit: str) -> Packaged:
    return Packaged("skimage", f"data/{file}", f"{credit}, as carried by scikit-image")


PACKAGED: Mapping[str, Packaged] = MappingProxyType(
    {
        "sklearn:china": _sklearn("china", "danielbuechele/6061409035"),
        "sklearn:flower": _sklearn("flower", "vultilion/6056698931"),
        "skimage:astronaut": _skimage("astronaut.png", "Eileen Collins by NASA, public domain"),
        "skimage:coffee": _skimage("coffee.png", "Coffee by Rachel Michetti (Pikolo Espresso Bar), CC0"),
        "skimage:chelsea": _skimage("chelsea.png", "Chelsea the cat by Stefan van der Walt, CC0"),
        "skimage:rocket": _skimage("rocket.jpg", "Falcon 9 by SpaceX, public domain"),
        "skimage:retina": _skimage("retina.jpg", "Retina by Mikael Häggström, CC0"),
        "skimage:hubble": _skimage(
            "hubble_deep_field.jpg", "Hubble eXtreme Deep Field by NASA, public domain"
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Photograph:
    """A picture in colour."""

    name: str
    colours: NDArray[Any]
    index: NDArray[np.int32]
    counts: NDArray[np.int64]
    credit: str = ""

    @property
    def top(self) -> int:
        return int(np.iinfo(self.colours.dtype).max)

    def rgb(self) -> Floats:
        return unit(self.colours, self.top)

    def paint(self, rgb: Floats) -> NDArray[Any]:
        painted: NDArray[Any] = whole(rgb, self.top)[self.index]
        return painted

    def drawn(self, count: int, seed: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(seed)
        return self.index.reshape(-1)[rng.integers(0, self.index.size, count)].astype(np.int64)


def open_photograph(which: str) -> Photograph:
    """The photograph that a name of `PACKAGED` or a path stands for."""
    if re.match(r"(sklearn|skimage):", which):
        return _packaged(which)
    path = Path(which)
    if not path.is_file():
        raise FileMissing(f"there is no file {path}", hint=f"a path, or one of: {', '.join(PACKAGED)}")
    return photograph(re.sub(r"[^A-Za-z0-9.-]+", "-", path.stem).strip("-.") or "picture", _read(path))


def photograph(name: str, pixels: NDArray[Any], credit: str = "") -> Photograph:
    """A photograph, checked: see `open_photograph` for what is refused."""
    if pixels.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        raise InputError(
            f"{name} holds {pixels.dtype} numbers; colours are read from pictures of 8 or 16 bits",
            hint="save it as PNG, JPEG or TIFF of 8 or 16 bits a channel",
        )
    if pixels.shape[2] != 3:
        raise _grey(name, "it has one channel")
    colours, index, counts = _distinct(pixels)
    covariance = np.cov(colours.T.astype(np.float64), fweights=counts, ddof=0)
    spread = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0.0))
    if spread[2] < 1.0:
        raise InputError(f"{name} is one flat colour", hint="choose a picture with more colours")
    if spread[0] < 1.0:
        what = "a line" if spread[1] < 1.0 else "a plane"
        raise _grey(name, f"its colours lie on {what} within one level")
    if len(colours) < MIN_COLOURS:
        raise InputError(
            f"{name} has {len(colours)} colours; at least {MIN_COLOURS} are needed",
            hint="choose a photograph",
        )
    return Photograph(name, colours, index, counts, credit)


def unit(pixels: NDArray[Any], top: int) -> Floats:
    return np.asarray(pixels, np.float64) * (2.0 / top) - 1.0


def whole(rgb: Floats, top: int) -> NDArray[Any]:
    levels = np.rint((np.clip(rgb, -1.0, 1.0) + 1.0) * (0.5 * top))
    return levels.astype(np.uint8 if top == 255 else np.uint16)


def to_space(rgb: Floats, space: Space) -> Floats:
    """Points (N, 3) of a space from rgb (N, 3) in [-1, 1]; slightly beyond is allowed."""
    if space == "rgb":
        return np.array(rgb, np.float64)
    linear = _decode_gamma((np.asarray(rgb, np.float64) + 1.0) / 2.0)
    x, y, z = _root(linear @ _XYZ.T / _WHITE).T
    return np.stack([(116 * y - 16) / 50 - 1, 10 * (x - y), 4 * (y - z)], axis=1)


def from_space(points: Floats, space: Space) -> Floats:
    """Numbers rgb (N, 3) from points (N, 3) of a space, not clipped: the inverse of `to_space`."""
    if space == "rgb":
        return np.array(points, np.float64)
    light, a, b = np.asarray(points, np.float64).T
    y = ((light + 1) * 50 + 16) / 116
    ratios = _power(np.stack([y + a / 10, y, y - b / 4], axis=1))
    linear = (ratios * _WHITE) @ np.linalg.inv(_XYZ).T
    return _encode_gamma(linear) * 2.0 - 1.0


def dequantised(photo: Photograph, space: Space, count: int, seed: int) -> Floats:
    """`count` points (N, 3) of a space, each somewhere in the cell of a pixel."""
    rng = np.random.default_rng(seed)
    pixels = photo.index.reshape(-1)
    rounds, rest = divmod(count, len(pixels))
    chosen = np.concatenate([np.tile(pixels, rounds), rng.permutation(pixels)[:rest]])
    cells = photo.colours[chosen] + (rng.random((count, 3)) - 0.5)
    return to_space(unit(cells, photo.top), space)


def _distinct(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]:
    codes = pixels.reshape(-1, 3).astype(np.int64) @ (1 << np.array([32, 16, 0]))
    found, index, counts = np.unique(codes, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 32, found >> 16 & 0xFFFF, found & 0xFFFF], axis=1).astype(pixels.dtype)
    return colours, index.reshape(pixels.shape[:2]).astype(np.int32), counts.astype(np.int64)


def _packaged(which: str) -> Photograph:
    found = PACKAGED.get(which)
    if found is None:
        raise FileMissing(
            f"there is no packaged photograph {which!r}", hint=f"there are: {', '.join(PACKAGED)}"
        )
    wheel = {"sklearn": "scikit-learn", "skimage": "scikit-image"}[found.package]
    folder = package_folder(wheel, found.package, needed_by="colours", what=f"{which} comes with")
    path = folder / found.file
    if not path.is_file():
        raise FileMissing(f"{path} is not there: this release of the package does not carry it")
    return photograph(which.partition(":")[2], _read(path), found.credit)


def _read(path: Path) -> NDArray[Any]:
    pixels: NDArray[Any] = read_image(path).pixels
    return pixels


def _grey(name: str, why: str) -> InputError:
    return InputError(
        f"{name} has no three-dimensional colours: {why}",
        hint="a grey or toned picture cannot give or take colours; choose one in colour",
    )


def _decode_gamma(encoded: Floats) -> Floats:
    return np.where(
        encoded <= 0.04045, encoded / 12.92, ((np.maximum(encoded, 0.04045) + 0.055) / 1.055) ** 2.4
    )


def _encode_gamma(linear: Floats) -> Floats:
    return np.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    )


def _root(ratio: Floats) -> Floats:
    return np.where(ratio > _DELTA**3, np.cbrt(ratio), ratio / (3 * _DELTA**2) + 4 / 29)


def _power(value: Floats) -> Floats:
    return np.where(value > _DELTA, value**3, 3 * _DELTA**2 * (value - 4 / 29))


OnStep = Callable[[int, int], None]

BASELINES = ("emd", "sinkhorn", "linear")
COUPLED = 1_000
"""Pixels of each photograph that EMD and Sinkhorn couple."""
SINKHORN_REGULARISATION = 0.1
"""Of the entropy, for colours in [0, 1] and squared distances: what POT's own example of colours uses."""
SMOOTH = 0.1
"""Default sigma_s, in standard deviations of the photograph's colours."""
JUDGED = 5_000
_JUDGED_SEED, _COUPLED_SEED, _COMPARED_SEED = 5, 42, 11
_COMPARED = 10_000


@dataclass(frozen=True, slots=True)
class Palette:
    """A photograph with the model of its colours in one space."""

    photo: Photograph
    space: Space
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class Recoloured:
    """What became of the colours of a photograph."""

    rgb: Floats
    cpu_seconds: float


def recolour(
    content: Palette,
    reference: Palette,
    settings: SolverSettings,
    *,
    smooth: float = SMOOTH,
    on_step: OnStep | None = None,
    threads: int = 1,
) -> Recoloured:
    """Every colour of `content` through its model's ODE to noise and through `reference`'s to a colour."""
    started = time.process_time()
    points = to_space(content.photo.rgb(), content.space)
    moved = _move(points, (content, reference), settings, smooth, on_step, threads)[-1]
    return Recoloured(from_space(moved, reference.space), time.process_time() - started)


def judge(
    content: Palette,
    reference: Palette,
    settings: SolverSettings,
    *,
    smooth: float = SMOOTH,
    threads: int = 1,
) -> dict[str, Any]:
    """Statistics of the latents of random pixels without smoothing, and how far colours come back with it."""
    photo = content.photo
    cells = dequantised(photo, content.space, JUDGED, _JUDGED_SEED)
    latent = _move(cells, (content,), settings, 0.0, None, threads)[0]
    colours = photo.rgb()[photo.drawn(JUDGED, _JUDGED_SEED)]
    path = (content, reference, content)
    there = _move(to_space(colours, content.space), path[:2], settings, smooth, None, threads)[-1]
    back = _move(there, path[1:], settings, smooth, None, threads)[-1]
    error = cycle_error(127.5 * colours, 127.5 * from_space(back, content.space))
    return {"latent": asdict(measure(torch.from_numpy(latent))), "round_trip": dict(error)}


def baselines(content: Photograph, reference: Photograph, space: Space) -> dict[str, Recoloured]:
    """The colours of `content` moved by each of `BASELINES` in a space."""
    ot = _pot()
    # POT's example has colours in [0, 1], which is what its regularisation is for.
    source, target = ((to_space(photo.rgb(), space) + 1) / 2 for photo in (content, reference))
    some = source[content.drawn(COUPLED, _COUPLED_SEED)]
    others = target[reference.drawn(COUPLED, _COUPLED_SEED + 1)]
    # POT's default would be its continuous map, in logarithms: minutes instead of seconds for a photograph.
    entropic = ot.da.SinkhornTransport(
        reg_e=SINKHORN_REGULARISATION, method="sinkhorn", out_of_sample_map="ferradans", tol=1e-6
    )
    coupled = {"emd": ot.da.EMDTransport(), "sinkhorn": entropic}
    found: dict[str, Recoloured] = {}
    for name, transport in coupled.items():
        started = time.process_time()
        moved = transport.fit(Xs=some, Xt=others).transform(Xs=source, batch_size=4096)
        found[name] = Recoloured(from_space(2 * moved - 1, space), time.process_time() - started)
    started = time.process_time()
    moved = gaussian_map(source, content.counts, target, reference.counts)
    found["linear"] = Recoloured(from_space(2 * moved - 1, space), time.process_time() - started)
    return found


def gaussian_map(
    source: Floats, weights: NDArray[np.int64], target: Floats, target_weights: NDArray[np.int64]
) -> Floats:
    """Points (K, 3) moved by the optimal map between Gaussians of the two weighted clouds' mean and covariance."""
    means = (np.average(source, axis=0, weights=weights), np.average(target, axis=0, weights=target_weights))
    covariances = (
        np.cov(source.T, fweights=weights, ddof=0),
        np.cov(target.T, fweights=target_weights, ddof=0),
    )
    matrix, offset = _pot().gaussian.bures_wasserstein_mapping(*means, *covariances)
    moved: Floats = source @ matrix + offset
    return moved


def figures(
    content: Photograph, reference: Photograph, ours: Recoloured, others: Mapping[str, Recoloured]
) -> dict[str, Any]:
    """How far DDIB's picture is from each other map's, and how near each comes to the reference's colours."""
    pictures = {
        "ddib": ours.rgb,
        **{name: other.rgb for name, other in others.items()},
        "content": content.rgb(),
    }
    clipped = {name: np.clip(rgb, -1, 1) for name, rgb in pictures.items()}

    def mse(first: str, second: str) -> float:
        per_colour = np.square(clipped[first] - clipped[second]).mean(axis=1)
        return float(np.average(per_colour, weights=content.counts))

    drawn, wanted = content.drawn(_COMPARED, _COMPARED_SEED), reference.drawn(_COMPARED, _COMPARED_SEED)
    goal = reference.rgb()[wanted]
    again = reference.rgb()[reference.drawn(_COMPARED, _COMPARED_SEED + 1)]
    names = list(others)
    return {
        "mse": {name: mse("ddib", name) for name in [*names, "content"]},
        "between": {f"{a}-{b}": mse(a, b) for i, a in enumerate(names) for b in names[i + 1 :]},
        "colours": {name: sliced_w2(rgb[drawn], goal) for name, rgb in clipped.items()}
        | {"floor": sliced_w2(again, goal)},
        "outside": {name: _outside(pictures[name], content) for name in ["ddib", *names]},
        "cpu_seconds": {
            "ddib": round(ours.cpu_seconds, 2),
            **{n: round(o.cpu_seconds, 2) for n, o in others.items()},
        },
    }


def _outside(rgb: Floats, photo: Photograph) -> float:
    beyond = (np.abs(rgb) > 1 + 1 / 255).any(axis=1)
    return float(photo.counts[beyond].sum() / photo.counts.sum())


def _move(
    points: Floats,
    path: tuple[Palette, ...],
    settings: SolverSettings,
    smooth: float,
    on_step: OnStep | None,
    threads: int,
) -> list[Floats]:
    """Points (N, 3) encoded by the first of the path and, if there is a second, decoded by it: latent, colours."""
    models = [DomainModel(palette.bundle) for palette in path]
    plans = [_plan(settings, palette, smooth) for palette in path]
    x = models[0].normalise(points.astype(np.float32))
    shrink = float(1.0 / np.hypot(1.0, smooth))
    starts = range(0, len(x), POINTS_TOGETHER)
    tell = Counter(settings.evaluations * len(path) * len(starts), on_step)
    latents, colours = [], []
    with torch_threads(threads):
        for start in starts:
            part = models[0].tensor(x[start : start + POINTS_TOGETHER]) * shrink
            latent = integrate(plans[0].encoder(part), models[0].plain, on_step=tell)
            latents.append(latent.numpy())
            if len(path) > 1:
                moved = integrate(plans[1].decoder(latent), models[1].plain, on_step=tell)
                colours.append((moved / shrink).numpy())
    stages: list[Floats] = [np.concatenate(latents).astype(np.float64)]
    if colours:
        stages.append(models[1].denormalise(np.concatenate(colours)).astype(np.float64))
    return stages


def _plan(settings: SolverSettings, palette: Palette, smooth: float) -> Plan:
    laid = plan(settings, palette.bundle.schedule, soften_sigma=smooth)
    return replace(laid, decode_grid=laid.encode_grid.reversed())


def _pot() -> Any:
    what = "comparing with optimal transport needs POT, which is not installed"
    with extra("colours", "POT", what, otherwise="--no-baselines"):
        import ot
    return ot


STEPS = 1_500
"""Optimiser steps of a model: about a minute of one core."""
WIDTH = 96
SOLVER = SolverSettings(evaluations=32)
MIN_POINTS, MAX_POINTS = 65_536, 400_000
_POINTS_SEED = 20_220_316

# Told what is being done, how far, of how much, and a remark.
OnProgress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class ColourSettings:
    """How colours are learned and exchanged."""

    space: Space = "rgb"
    solver: SolverSettings = SOLVER
    smooth: float = SMOOTH
    train_steps: int = STEPS
    width: int = WIDTH
    batch: int = 2048
    seed: int = 0
    threads: int = 1
    both: bool = False
    compare: bool = True
    command: str = ""


def transfer(
    content: Photograph,
    reference: Photograph,
    settings: ColourSettings,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train what is missing, exchange colours, write pictures and report."""
    require_alone("exchanging colours")
    if content.name == reference.name:
        raise UsageError(f"both pictures are called {content.name}", hint="rename one of them")
    check_settings(settings.solver)
    first, second = (
        palette(photo, settings, out, resume=resume, force=force, on_progress=on_progress)
        for photo in (content, reference)
    )
    pairs = [(first, second), (second, first)] if settings.both else [(first, second)]
    report: dict[str, Any] = {
        "space": settings.space,
        "solver": asdict(settings.solver),
        "smooth": settings.smooth,
        "photographs": [_photograph(p) for p in (first, second)],
        "directions": [_direction(a, b, settings, out, on_progress) for a, b in pairs],
    }
    write_json(out / "report.json", report)
    return report


def palette(
    photo: Photograph,
    settings: ColourSettings,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Palette:
    """The photograph with the model of its colours, trained or found in `out`; errors as in `transfer`."""
    count = int(np.clip(photo.index.size, MIN_POINTS, MAX_POINTS))
    content = to_npy(dequantised(photo, settings.space, count, _POINTS_SEED).astype(np.float32))
    label = f"{photo.name[:60]}-{settings.space}-{hashlib.sha256(content).hexdigest()[:8]}"
    folder = out / "models" / label
    out.mkdir(parents=True, exist_ok=True)
    model_folder(folder.parent)
    points = folder.with_name(f"{label}.npy")
    write_file(points, content, private=True)
    config = TrainConfig(
        kind="points",
        data=points,
        name=f"colours-{label}",
        seed=settings.seed,
        steps=settings.train_steps,
        batch=settings.batch,
        width=settings.width,
        threads=settings.threads,
        samples=2_000,
        command=settings.command,
    )
    tell = None
    if on_progress is not None:
        what = f"training {photo.name}"
        tell = lambda p: on_progress(what, p.step, p.steps, f"loss {p.loss:.4f}")  # noqa: E731
    try:
        bundle = train(config, folder, tell, resume=resume, force=force)
    finally:
        # It can be made again from the picture, bit for bit.
        points.unlink(missing_ok=True)
    return Palette(photo, settings.space, bundle)


def _direction(
    content: Palette, reference: Palette, settings: ColourSettings, out: Path, on_progress: OnProgress | None
) -> dict[str, Any]:
    photo, other = content.photo, reference.photo
    stem = f"{photo.name}-to-{other.name}"

    def tell(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(f"colouring {photo.name}", done, total, "")

    smooth, threads = settings.smooth, settings.threads
    ours = recolour(content, reference, settings.solver, smooth=smooth, on_step=tell, threads=threads)
    _save(out / f"{stem}.png", photo, ours.rgb)
    others = baselines(photo, other, settings.space) if settings.compare else {}
    for name, found in others.items():
        _save(out / f"{stem}-{name}.png", photo, found.rgb)
    return {
        "from": photo.name,
        "to": other.name,
        "picture": f"{stem}.png",
        **figures(photo, other, ours, others),
        **judge(content, reference, settings.solver, smooth=smooth, threads=threads),
    }


def _save(path: Path, photo: Photograph, rgb: Floats) -> None:
    write_file(path, encode_png(photo.paint(rgb)))


def _photograph(palette: Palette) -> dict[str, Any]:
    photo, manifest = palette.photo, palette.bundle.manifest
    height, width = photo.index.shape
    return {
        "name": photo.name,
        "height": height,
        "width": width,
        "bits": 8 if photo.top == 255 else 16,
        "colours": len(photo.colours),
        "credit": photo.credit,
        "model": {
            "digest": palette.bundle.digest,
            "parameters": manifest.parameters,
            "steps": manifest.training.steps,
            **manifest.training.figures,
        },
    }

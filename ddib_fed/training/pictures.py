"""Learning a model, or a classifier, of pictures: the initial weights, the batches of a step, and the task."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from ddib_fed import metrics
from ddib_fed.calibration.record import RETRAINED, Calibration, units_digest
from ddib_fed.data.folder import expand
from ddib_fed.datasets import generator_of, uniforms
from ddib_fed.diffusion.denoiser import Denoiser, TimeInput, on_device
from ddib_fed.diffusion.plans import SolverSettings, decode
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.errors import (
    BundleInvalid,
    CalibrationExpired,
    CalibrationForeign,
    CalibrationUnits,
    ExtraMissing,
    SettingsInvalid,
)
from ddib_fed.evaluation.features import FEWEST, SAMPLES, judge_samples
from ddib_fed.evaluation.sheets import as_pictures, save_sheet
from ddib_fed.files import first_problem
from ddib_fed.metrics import calibrate_by_chance
from ddib_fed.models.bundle import Bundle, load_bundle, open_bundle
from ddib_fed.models.manifest import LatentSpace, Manifest
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.config import ClassifierConfig, LibraryConfig, UNetConfig
from ddib_fed.networks.spectrum import Moments, Spectrum, spectrum_of
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.objective import LambdaSampler, Question, ask
from ddib_fed.training.sources import Floats, PictureSource, normalisation
from ddib_fed.training.trainer import Piece, Task, Trainer

Network = TypeVar("Network", UNetConfig, ClassifierConfig)


class Start(NamedTuple):
    """What a run begins with; `digest` is of the bundles and the calibration that it starts from."""

    network: UNetConfig | ClassifierConfig | LibraryConfig
    schedule: ScheduleConfig
    parameterisation: Any = "v"
    time_input: TimeInput = "scaled-lambda"
    bundle: Bundle | None = None
    normal: Normalisation | None = None
    digest: str = ""


def open_start(config: TrainConfig, source: PictureSource, shape: tuple[int, ...] | None = None) -> Start:
    """Return the start of a run on samples of this shape, by default the source's."""
    channels, height, *_ = shape or source.shape
    if config.kind == "classifier":
        return _classifier_start(config, source)
    follows = {
        "image_size": height,
        "in_channels": channels,
        "out_channels": channels,
        "num_classes": len(source.classes) if config.classes is not None else None,
        "class_dropout": config.label_dropout > 0,
    }
    if config.init is None:
        dims = len(shape or source.shape) - 1
        network = _network(UNetConfig, config, {}, follows) if dims == 2 else _volume_network(config, follows)
        predict = config.predict or "v"
        usual = "flow" if predict == "flow" else "cosine"
        return Start(network, ScheduleConfig(name=config.noise_schedule or usual), predict)
    bundle = open_bundle(str(config.init))
    made = bundle.manifest
    if not isinstance(made.network, UNetConfig):
        problem = f"{config.init} holds a network of kind {made.network.kind}"
        raise BundleInvalid(problem, hint="start from a bundle of pictures")
    if made.parameterisation == "x0":
        raise SettingsInvalid("weights that predict x0 cannot be trained on", hint="v, eps or flow")
    fields = made.network.model_dump()
    asked: dict[str, tuple[object, object]] = {
        "predict": (config.predict, made.parameterisation),
        "noise_schedule": (config.noise_schedule, made.schedule.name),
    }
    for key, value in config.network.items():
        asked[key] = tuple(value) if isinstance(value, list) else value, fields.get(key)
    for key, (wanted, has) in asked.items():
        if wanted is not None and wanted != has:
            problem = f"{key} is {has} in the initial weights, not {wanted}"
            raise SettingsInvalid(problem, hint=f"leave {key} out")
    network = _network(UNetConfig, config, fields, follows)
    normal, digest = None, bundle.digest
    if config.calibration is not None:
        normal, map_digest = _calibrated_units(config, config.calibration, made)
        digest += f" {map_digest}"
    return Start(network, made.schedule, made.parameterisation, made.time_input, bundle, normal, digest)


def _classifier_start(config: TrainConfig, source: PictureSource) -> Start:
    """Return fresh weights, for the levels and the units of the model to be guided."""
    channels, height, _ = source.shape
    follows = {"image_size": height, "in_channels": channels, "out_channels": len(source.classes)}
    network = _network(ClassifierConfig, config, {}, follows)
    if config.generator is None:
        return Start(network, ScheduleConfig(name=config.noise_schedule or "cosine"))
    bundle = load_bundle(config.generator)
    made = bundle.manifest
    facts: dict[str, tuple[object, object]] = {"sample_shape": (made.sample_shape, source.shape)}
    if made.classes:
        facts["classes"] = made.classes, source.classes
    elif made.num_classes is not None:
        facts["classes"] = made.num_classes, len(source.classes)
    for name, (wanted, has) in facts.items():
        if wanted != has:
            problem = f"the model to be guided has {name} {wanted}, the pictures {has}"
            raise SettingsInvalid(problem, hint="train on the same pictures")
    units = made.normalisation
    return Start(network, made.schedule, "v", made.time_input, normal=units, digest=bundle.digest)


def _network(
    kind: type[Network], config: TrainConfig, fields: Mapping[str, Any], follows: Mapping[str, Any]
) -> Network:
    """A network of these fields, with those that follow from pictures and run; it fits the size of the pictures."""
    require_followed(config, follows)
    default = kind.model_fields["kind"].default
    try:
        network = kind.model_validate({**fields, **config.network, **follows, "kind": default})
    except ValidationError as error:
        where, problem = first_problem(error)
        hint = f"leave out --set of the network's fields: those of the preset {config.preset} fit together"
        raise SettingsInvalid(f"{where or 'the network'}: {problem}", hint=hint) from error
    require_divided(
        [network.image_size], network.divisor, ", fewer levels in channel_mult, or a smaller patch"
    )
    return network


def require_followed(config: TrainConfig, follows: Mapping[str, Any]) -> None:
    """Raise SettingsInvalid if the run gives a field of the network another value than follows from the pictures."""
    for key, value in follows.items():
        if config.network.get(key, value) != value:
            problem = f"{key} follows from the pictures and the run and is {value}, not {config.network[key]}"
            raise SettingsInvalid(problem, hint=f"leave {key} out of the network's fields")


def require_divided(sides: Sequence[int], divisor: int, others: str = "") -> None:
    if any(side % divisor for side in sides):
        problem = f"samples of {sides[-1]} pixels do not divide by {divisor}, as the network needs"
        raise SettingsInvalid(problem, hint=f"a size that divides by {divisor}{others}")


def _volume_network(config: TrainConfig, follows: Mapping[str, Any]) -> LibraryConfig:
    """MONAI's network of volumes; fields of the run's network, but for `spectral`, are arguments of its constructor."""
    spectral = bool(config.network.get("spectral"))
    arguments: dict[str, Any] = {
        **{name: value for name, value in config.network.items() if name != "spectral"},
        "spatial_dims": 3,
        "in_channels": follows["in_channels"] * (1 + spectral),
        "out_channels": follows["out_channels"],
    }
    if follows["num_classes"] is not None:
        arguments["num_class_embeds"] = follows["num_classes"]
    target: Any = "monai.networks.nets.DiffusionModelUNet"
    sides = (follows["image_size"],) * 3 if spectral else ()
    network = LibraryConfig(target=target, arguments=arguments, spectral=sides)
    require_divided([follows["image_size"]], network.divisor)
    return network


def _calibrated_units(config: TrainConfig, path: Path, made: Manifest) -> tuple[Normalisation, str]:
    """From pictures in [-1, 1] to the units of the model that they are translated to, and the map's digest."""
    calibration, units = Calibration.open(path), units_digest(made.normalisation)
    if calibration.kind not in RETRAINED:
        raise SettingsInvalid(
            f"{path} is a {calibration.kind}, for which no model is trained: the one there is works with it",
            hint=f"ddib translate --source A --target B --calibration {shlex.quote(str(path))}",
        )
    if calibration.expired():
        problem = f"{path} ended on {calibration.expires:%Y-%m-%d}"
        raise CalibrationExpired(problem, hint="make it anew: ddib calibrate")
    if calibration.source.domain not in {made.domain, made.name, config.name, config.domain}:
        problem = (
            f"{path} maps pictures of {calibration.source.domain}, and {config.init} is of {made.domain}"
        )
        raise CalibrationForeign(problem, hint=f"--init with the model of {calibration.source.domain}")
    if calibration.source.units_sha256 != units:
        whose = "the target's" if calibration.target.units_sha256 == units else "other"
        raise CalibrationUnits(
            f"{path} maps from units that {config.init} does not have: those are {whose}",
            hint="--init with the model that the calibration was made with, on the side that it maps from",
        )
    if config.colours not in ("rgb", made.normalisation.colours):
        problem = f"colours is {made.normalisation.colours} in the initial weights, not {config.colours}"
        raise SettingsInvalid(problem, hint="leave colours out")
    digest = hashlib.sha256(calibration.map.model_dump_json(exclude_none=True).encode()).hexdigest()
    return made.normalisation.model_copy(update={"calibrated": calibration.map}), digest


def _fitted(name: str, have: Tensor | None, want: Tensor) -> Tensor:
    """An initial weight in the shape of a fresh one. Spectrum and classes are the run's own where they differ; of the
    output a variance that was learned beside the mean is dropped.
    """
    if have is not None and have.shape != want.shape and name.startswith("out.2."):
        have = have.chunk(2)[0]
    if have is not None and have.shape == want.shape:
        return have
    if name.startswith(("spectrum.", "label_emb.weight")):
        return want
    raise BundleInvalid(
        f"the initial weights do not fit: {name} is {None if have is None else tuple(have.shape)}, the network needs "
        f"{tuple(want.shape)}",
        hint="start from a bundle of the same number of channels, and give no field of the network",
    )


def channels_last(network: nn.Module) -> nn.Module:
    if any(parameter.ndim > 4 for parameter in network.parameters()):
        return network
    moved: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


COLUMNS = 5
FLIP, TOP, LEFT, DROP, LEVEL = range(COLUMNS)
"""The uniform numbers of a sample: mirroring, corner of the window, withheld class, noise level."""
CORNER = {4: [TOP, LEFT], 5: [COLUMNS, TOP, LEFT]}
"""Of a window of pictures and of volumes, which have a number more."""
_EPOCH_KEY = 2**63  # added to an epoch's number, so that its order and a step's numbers never share a key
_HELD_OUT_STEP = 2**62


class Samples(NamedTuple):
    x0: Tensor
    eps: Tensor
    labels: Tensor | None

    def on(self, device: torch.device) -> Samples:
        x0, eps = (on_device(part, device) for part in (self.x0, self.eps))
        return Samples(x0, eps, None if self.labels is None else on_device(self.labels, device))

    def part(self, rows: slice) -> Samples:
        return Samples(self.x0[rows], self.eps[rows], None if self.labels is None else self.labels[rows])


def random_crop(pictures: NDArray[Any], size: int, u: NDArray[np.floating]) -> NDArray[Any]:
    """A window of each picture (N, C, *sides), its corner by a uniform for each side; every place is equally likely."""
    free = np.array(pictures.shape[2:]) - size
    corners = np.floor(u * (free + 1)).astype(np.int64).tolist()
    windows = zip(pictures, corners, strict=True)
    return np.stack([each[:, *(slice(at, at + size) for at in corner)] for each, corner in windows])


def middle(pixels: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    starts = ((have - want) // 2 for have, want in zip(pixels.shape[2:], size, strict=True))
    return pixels[:, :, *(slice(at, at + side) for at, side in zip(starts, size, strict=True))]


_SAMPLE_SEED = 4_711
_COARSE, _FINE = SolverSettings(evaluations=16), SolverSettings(evaluations=32)
NEAR = 0.6
"""A sample is suspiciously near to training pictures when held-out pictures are so many times farther away."""
NEAR_AMONG = 20_000
HELD_OUT_PICTURES = 256
MEASURED_PICTURES, MEASURED_NUMBERS = 8_192, 1 << 28
"""At most so many pictures, and numbers in them, that a spectrum is measured of."""
_MEASURED_AT_ONCE = 64


class PictureTask(Task):
    def __init__(self, config: TrainConfig, source: PictureSource, start: Start) -> None:
        super().__init__(config, start.network)
        self.source, self.start = source, start
        self.pictures = source
        """The pictures of the domain, which samples are compared with; what is learned may be their latents."""
        self.classifies = isinstance(start.network, ClassifierConfig)
        self.normal = start.normal or normalisation(config, source)
        self.units = self.normal
        """From pictures in [-1, 1] to what the first network takes: the model's, or the autoencoder's."""
        self.latents: LatentSpace | None = None
        self._schedule = schedule_from_config(start.schedule)
        self._lambdas = LambdaSampler(self._schedule)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def shown(self, x: Tensor) -> Floats:
        """Return the pictures of network samples."""
        return self.normal.undo(x.numpy())

    def initial_network(self) -> nn.Module:
        network = super().initial_network()
        if self.start.bundle is not None:
            fresh, have = network.state_dict(), self.start.bundle.state
            network.load_state_dict(
                {name: _fitted(name, have.get(name), want) for name, want in fresh.items()}
            )
        if (spectrum := spectrum_of(network)) is not None:
            self.measure_spectrum(spectrum)
        return channels_last(network)

    def measure_spectrum(self, spectrum: Spectrum) -> None:
        """Measure the first training pictures, as a step would have them."""
        moments = Moments(*self.source.shape)
        most = max(1, MEASURED_NUMBERS // math.prod(self.source.shape))
        count = min(len(self.source.train), MEASURED_PICTURES, most)
        for first in range(0, count, _MEASURED_AT_ONCE):
            moments.add(self.take(0, first, min(_MEASURED_AT_ONCE, count - first)).x0)
        spectrum.measure(moments)

    def averaged(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        return channels_last(super().averaged(state, device))

    def fetch(self, piece: Piece, device: torch.device) -> Samples:
        return self.take(piece.step, piece.first, piece.stop - piece.first).on(device)

    def take(self, step: int, first: int, count: int) -> Samples:
        """Return samples `first` to `first + count` of a step; each depends on (seed, step, sample) alone."""
        u = uniforms(self.config.seed, step, count, COLUMNS + (self.source.train.ndim == 5), first=first)
        chosen = self._chosen(step * self.config.batch + first, count)
        x0, eps = self._noisy(self.changed(chosen, u, step, first), step, first)
        return Samples(x0, eps, self.labels(chosen, u[:, DROP]))

    def changed(self, chosen: NDArray[np.int64], u: NDArray[np.float64], step: int, first: int) -> Floats:
        """Return training pictures in [-1, 1], mirrored, cut and augmented as the run has it."""
        pixels = self.source.train[chosen]
        if self.source.size is not None:
            pixels = random_crop(pixels, self.source.size, u[:, CORNER[pixels.ndim]])
        if self.config.flip:
            mirrored = (u[:, FLIP] < 0.5).reshape(-1, *(1,) * (pixels.ndim - 1))
            pixels = np.where(mirrored, pixels[..., ::-1], pixels)
        return augmented(expand(pixels), self.config, step, first)

    def labels(self, chosen: NDArray[np.int64], u: NDArray[np.float64]) -> Tensor | None:
        if self.config.classes is None or self.source.labels is None:
            return None
        withheld = u < self.config.label_dropout
        return torch.from_numpy(np.where(withheld, len(self.source.classes), self.source.labels[chosen]))

    def _chosen(self, first: int, count: int) -> NDArray[np.int64]:
        """Return indices of the pictures at places `first` to `first + count` of the endless sequence of epochs."""
        places = np.arange(first, first + count)
        total = len(self.source.train)
        indices = np.empty(count, np.int64)
        for epoch in np.unique(places // total).tolist():
            if epoch != self._epoch:
                bits = np.random.Philox(key=np.array([self.config.seed, _EPOCH_KEY + epoch], np.uint64))
                self._epoch, self._order = epoch, np.random.Generator(bits).permutation(total)
            here = places // total == epoch
            indices[here] = self._order[places[here] % total]
        return indices

    def _noisy(self, x: Floats, step: int, first: int) -> tuple[Tensor, Tensor]:
        """Return normalised pictures, their quantisation steps filled with noise, and the noise of the diffusion."""
        eps, filled = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
        for row in range(len(x)):
            generator = generator_of(self.config.seed, step, first + row)
            generator.standard_normal(dtype=np.float32, out=eps[row])
            generator.random(dtype=np.float32, out=filled[row])
        x = x + (filled - np.float32(0.5)) * np.float32(self.source.quantum)
        return torch.from_numpy(self.normal.apply(x)), torch.from_numpy(eps)

    def loss(self, network: nn.Module, piece: Piece, samples: Samples) -> tuple[Tensor, Tensor]:
        batch = self.config.batch
        u = uniforms(self.config.seed, piece.step, batch, COLUMNS)[:, LEVEL]
        lams = self._lambdas(torch.from_numpy((np.arange(batch) + u) / batch))
        # Only dropout asks torch for numbers; its masks are the one thing that the cut of a batch changes.
        torch.manual_seed((self.config.seed * 1_000_003 + piece.step) * 65_537 + piece.first & 2**63 - 1)
        losses = self._losses(network, samples, lams[piece.first : piece.stop])
        return losses.sum() / batch, losses

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        held_out = expand(middle(self.source.held_out[:HELD_OUT_PICTURES], self.source.shape[1:]))
        x0, eps = self._noisy(held_out, _HELD_OUT_STEP, 0)
        labels, count = self.source.held_out_labels, len(x0)
        given = self.config.classes is not None and labels is not None
        samples = Samples(x0, eps, torch.from_numpy(labels[:count]) if given and labels is not None else None)
        lams = self._lambdas((torch.arange(count, dtype=torch.float64) + 0.5) / count)
        losses = []
        for first in range(0, count, at_once):
            part = slice(first, first + at_once)
            losses.append(self._losses(network, samples.part(part), lams[part]).cpu())
        return float(torch.cat(losses).double().mean())

    def aside(self) -> Floats | None:
        if self.classifies:
            return None
        held_out = self._held_out_pictures()
        return held_out[np.random.default_rng(self.config.seed).permutation(len(held_out))]

    def _held_out_pictures(self, most: int | None = None) -> Floats:
        return expand(middle(self.pictures.held_out[:most], self.pictures.shape[1:]))

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        if self.classifies:
            return ""
        config, size = self.config, self.pictures.shape[1:]
        real, others = self.reference_pictures()
        judged = last and len(real) >= FEWEST and len(others) >= 2 * FEWEST
        count = max(config.samples, SAMPLES if judged else 0)
        drawn = self._draw(trainer.averaged(), count, trainer.microbatch, _FINE if last else _COARSE)
        shown = drawn[: config.samples]
        save_sheet(folder / "samples.png", {"samples": shown})
        if last:
            save_sheet(folder / "held-out.png", {"held out": self._held_out_pictures(config.samples)})
        own, fresh = nearness(self.pictures, shown, flip=config.flip)
        self.figures = {
            "nearest_training_picture": round(own, 5),
            "nearest_training_picture_held_out": round(fresh, 5),
        }
        if judged:
            whole = expand(middle(real, size)), expand(middle(others, size))
            self._judge(trainer, *map(as_pictures, (drawn, *whole)))
        ratio = own / max(fresh, 1e-6)
        if ratio >= NEAR:
            return ""
        return (
            f"overfitting: samples are {1 / max(ratio, 1e-3):.1f} times nearer to training pictures than held-out "
            "pictures are; stop earlier, add pictures, or use --flip and --set crop=true"
        )

    def reference_pictures(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return two sets of the domain's pictures; samples and thresholds of structure are compared with these."""
        return self.pictures.held_out, self.pictures.train

    def manifest(self) -> dict[str, Any]:
        config, source, start = self.config, self.pictures, self.start
        real, others = (middle(each, source.shape[1:]) for each in self.reference_pictures())
        measured = not self.classifies and len(source.shape) == 3 and len(real) > 0 and len(others) > 0
        return {
            "role": "classifier" if self.classifies else "generator",
            "sample_kind": "picture" if len(source.shape) == 3 else "volume",
            "sample_shape": source.shape,
            "network": self.network,
            "parameterisation": start.parameterisation,
            "time_input": start.time_input,
            "schedule": start.schedule,
            "normalisation": self.units,
            "latents": self.latents,
            "soften_sigma": config.soften_sigma,
            "picture": source.picture,
            "classes": source.classes if config.classes is not None else (),
            "data": source.note,
            "structure": calibrate_by_chance(real, others, units=self.units) if measured else None,
        }

    def ask(self, x0: Tensor, eps: Tensor, lams: Tensor) -> Question:
        return ask(self._schedule, self.start.parameterisation, self.start.time_input, x0, eps, lams)

    def _losses(self, network: nn.Module, samples: Samples, lams: Tensor) -> Tensor:
        x0, eps, labels = samples.on(next(network.parameters()).device)
        question = self.ask(x0, eps, lams)
        extra = {} if labels is None or self.classifies else {"y": labels}
        x = question.x
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            answer = network(x, question.times, **extra)
        if labels is not None and self.classifies:
            return functional.cross_entropy(answer.float(), labels, reduction="none")
        losses: Tensor = (answer.float() - question.target).square().flatten(1).mean(1)
        return losses

    def _draw(self, network: nn.Module, count: int, at_once: int, settings: SolverSettings) -> Floats:
        """Return pictures (N, C, H, W) in [-1, 1] that a network draws, always from the same noise."""
        device = next(network.parameters()).device
        noise = torch.randn(count, *self.source.shape, generator=torch.Generator().manual_seed(_SAMPLE_SEED))
        denoiser = Denoiser(network, self.start.parameterisation, self.start.time_input)
        drawn: list[Tensor] = []
        for first in range(0, count, at_once):
            part = noise[first : first + at_once].to(device)
            cond = None
            if self.config.classes is not None:
                numbers = torch.arange(first, first + len(part)) % len(self.source.classes)
                cond = {"y": numbers.to(device)}
            drawn.append(decode(part, denoiser, self._schedule, settings, cond=cond).cpu())
        return np.clip(self.shown(torch.cat(drawn)), -1, 1)

    def _judge(self, trainer: Trainer, drawn: Floats, real: Floats, others: Floats) -> None:
        """Compare samples with held-out pictures: have it said, and recorded among the figures."""
        weights, labels = None, self.source.labels
        if self.config.classes is not None and labels is not None and len(labels) == len(others):
            weights = 1.0 / np.bincount(labels)[labels]
        try:
            judged = judge_samples(drawn, real, others, weights)
        except ExtraMissing as error:
            trainer.notes.append(
                f"samples are not compared with held-out pictures: {error.detail}; {error.hint}"
            )
            return
        if judged is not None:
            self.figures |= judged.figures()
            trainer.notes.append(judged.sentence(trainer.step))


def nearness(source: PictureSource, drawn: Floats, *, flip: bool) -> tuple[float, float]:
    """How far drawn pictures, and held-out ones, are from the nearest training picture, in units of how far from the
    mean one; medians.
    """
    own = middle(source.train[:: max(1, len(source.train) // NEAR_AMONG)], drawn.shape[2:])
    train = metrics.reduced(as_pictures(expand(own)))
    if flip:
        train = np.concatenate([train, metrics.reduced(as_pictures(expand(own[..., ::-1])))])
    held_out = expand(middle(source.held_out[:256], drawn.shape[2:]))
    first, second = (metrics.nearest(metrics.reduced(as_pictures(x)), train) for x in (drawn, held_out))
    return float(np.median(first)), float(np.median(second))


# Changes that another head or scanner brings (`augment`). In order, v in [0, 1]: a smooth displacement with a change of
# scale, which is all of "shape"; v^g; a smooth factor (bias field); noise. The strengths are those at which a model of
# one head reconstructs another one (docs/own-pictures.md).
SCALE = 0.08  # deviation of the logarithm of a change of size
BEND, KNOTS = 0.02, 5
"""Deviation of the displacement at knots, as a share of the side, and knots along a side."""
GAMMA, FACTOR, BIAS, NOISE = 0.25, 0.1, 0.15, 0.03
"""Deviations of log g, of the logarithm of a factor on all, and of the bias field's; the largest noise."""


def augmented(pictures: Floats, config: TrainConfig, step: int, first: int) -> Floats:
    """Return pictures (N, C, H, W) in [-1, 1], changed; each by seed, step and number alone."""
    how, seed = config.augment, config.seed
    if how == "none":
        return pictures
    if pictures.ndim != 4:
        raise SettingsInvalid(f"augment={how} changes pictures, and these are volumes", hint="leave it out")
    numbered = enumerate(pictures, first)
    return np.stack([_changed(each, generator_of(seed, step, n, stream=1), how) for n, each in numbered])


def _changed(picture: Floats, draw: np.random.Generator, how: str) -> Floats:
    height, width = picture.shape[1:]
    scale = float(np.exp(SCALE * draw.standard_normal()))
    pull = _smooth(BEND * 2.0 * draw.standard_normal((2, KNOTS, KNOTS)), height, width)
    at = functional.affine_grid(torch.eye(2, 3)[None] * scale, [1, 1, height, width], align_corners=False)
    at = at + pull.permute(1, 2, 0)[None]
    levels = torch.from_numpy((picture[None] + 1.0) / 2.0).clamp(0.0, 1.0)
    moved = functional.grid_sample(levels, at, padding_mode="border", align_corners=False)[0]
    if how == "shape":
        return (moved * 2.0 - 1.0).numpy()
    field = _smooth(BIAS * draw.standard_normal((1, 3, 3)), height, width)
    factor = torch.exp(field + FACTOR * draw.standard_normal())
    noise = NOISE * draw.random() * torch.from_numpy(draw.standard_normal(picture.shape).astype(np.float32))
    changed = moved ** float(np.exp(GAMMA * draw.standard_normal())) * factor
    changed = changed / changed.amax().clamp_min(1.0)  # nothing is saturated
    changed = torch.where(moved > 0.0, changed + noise, changed)  # a scan that was masked stays masked
    return (changed.clamp(0.0, 1.0) * 2.0 - 1.0).numpy()


def _smooth(knots: NDArray[np.float64], height: int, width: int) -> Tensor:
    """Return fields (C, H, W) through knots (C, K, K)."""
    small = torch.from_numpy(knots.astype(np.float32))[None]
    return functional.interpolate(small, (height, width), mode="bicubic", align_corners=True)[0]

"""Learning a model, or a classifier, of pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ddib_fed.data.folder import expand
from ddib_fed.data.synthetic import uniforms
from ddib_fed.diffusion.bridge import decode
from ddib_fed.diffusion.denoiser import Denoiser, on_device
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import schedule_from_config
from ddib_fed.errors import ExtraMissing, ShapeMismatch
from ddib_fed.evaluation import metrics
from ddib_fed.evaluation.sample_verdict import FEWEST, SAMPLES, SampleVerdict, judge_samples
from ddib_fed.evaluation.structure import Thresholds, calibrate_by_chance
from ddib_fed.files import write_file
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.config import network_with
from ddib_fed.networks.spectrum import Moments
from ddib_fed.networks.unet import UNet
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.objective import LambdaSampler, Question, ask
from ddib_fed.training.sources import PictureSource, Start, channels_last, new_network, normalisation
from ddib_fed.training.trainer import Piece, Trainer

COLUMNS = 5
FLIP, TOP, LEFT, DROP, LEVEL = range(COLUMNS)
_EPOCH_KEY = 2**63
"""Added to an epoch's number, so that its order and a step's numbers never share a key."""
_HELD_OUT_STEP = 2**62


@dataclass(frozen=True, slots=True)
class Samples:
    """Some samples of a step, clean, with what belongs to each."""

    x0: Tensor
    eps: Tensor
    labels: Tensor | None


class Batches:
    """The samples of a run."""

    def __init__(self, config: TrainConfig, source: PictureSource, normal: Normalisation) -> None:
        self._config, self._source, self._normal = config, source, normal
        self._batch = config.batch
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def levels(self, step: int) -> Tensor:
        u = uniforms(self._config.seed, step, self._batch, COLUMNS)[:, LEVEL]
        return torch.from_numpy((np.arange(self._batch) + u) / self._batch)

    def take(self, step: int, first: int, count: int) -> Samples:
        """Samples `first` to `first + count` of a step."""
        u = uniforms(self._config.seed, step, count, COLUMNS, first=first)
        chosen = self._chosen(step * self._batch + first, count)
        x0, eps = self._noisy(self.changed(chosen, u), self._config.seed, step, first)
        return Samples(x0, eps, self.labels(chosen, u[:, DROP]))

    def held_out(self, most: int) -> Samples:
        """The first `most` held-out pictures, always with the same noise."""
        pixels = self._source.held_out[:most]
        if self._source.size is not None:
            pixels = random_crop(pixels, (self._source.size,) * 2, np.full((len(pixels), 2), 0.5))
        x0, eps = self._noisy(expand(pixels), self._config.seed, _HELD_OUT_STEP, 0)
        labels = self._source.held_out_labels
        given = self._config.classes is not None and labels is not None
        return Samples(x0, eps, torch.from_numpy(labels[:most]) if given and labels is not None else None)

    def changed(self, chosen: NDArray[np.int64], u: NDArray[np.float64]) -> Floats:
        """Training pictures in [-1, 1], flipped and cut as the run has it."""
        pixels = self._source.train[chosen]
        if self._source.size is not None:
            pixels = random_crop(pixels, (self._source.size,) * 2, u[:, [TOP, LEFT]])
        if self._config.flip:
            pixels = random_flip(pixels, u[:, FLIP])
        return expand(pixels)

    def _chosen(self, first: int, count: int) -> NDArray[np.int64]:
        """Indices of the pictures at places `first` to `first + count` of the endless sequence of epochs."""
        places = np.arange(first, first + count)
        total = len(self._source.train)
        found = np.empty(count, np.int64)
        for epoch in np.unique(places // total).tolist():
            if epoch != self._epoch:
                bits = np.random.Philox(key=np.array([self._config.seed, _EPOCH_KEY + epoch], np.uint64))
                self._epoch, self._order = epoch, np.random.Generator(bits).permutation(total)
            here = places // total == epoch
            found[here] = self._order[places[here] % total]
        return found

    def _noisy(self, x: Floats, seed: int, step: int, first: int) -> tuple[Tensor, Tensor]:
        """Normalised pictures, their quantisation steps filled with noise, and the noise of the diffusion."""
        eps = np.empty(x.shape, np.float32)
        filled = np.empty(x.shape, np.float32) if self._config.dequantise else None
        for row in range(len(x)):
            generator = _generator(seed, step, first + row)
            generator.standard_normal(dtype=np.float32, out=eps[row])
            if filled is not None:
                generator.random(dtype=np.float32, out=filled[row])
        if filled is not None:
            x = x + (filled - np.float32(0.5)) * np.float32(self._source.quantum)
        return torch.from_numpy(self._normal.apply(x)), torch.from_numpy(eps)

    def labels(self, chosen: NDArray[np.int64], u: NDArray[np.float64]) -> Tensor | None:
        if self._config.classes is None or self._source.labels is None:
            return None
        withheld = u < self._config.label_dropout
        return torch.from_numpy(np.where(withheld, len(self._source.classes), self._source.labels[chosen]))


def _generator(seed: int, step: int, sample: int) -> np.random.Generator:
    key = np.array([seed, step], np.uint64)
    counter = np.array([0, 0, 0, sample + 1], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def random_flip(pictures: NDArray[Any], uniforms: NDArray[np.floating]) -> NDArray[Any]:
    """Mirrored left to right where the uniform is below a half."""
    _check_uniforms(pictures, uniforms, (len(pictures),))
    mirrored = (uniforms < 0.5)[:, None, None, None]
    return np.where(mirrored, pictures[..., ::-1], pictures)


def random_crop(
    pictures: NDArray[Any], size: tuple[int, int], uniforms: NDArray[np.floating]
) -> NDArray[Any]:
    """A window of each picture, its corner by two uniforms; every place is equally likely."""
    _check_uniforms(pictures, uniforms, (len(pictures), 2))
    free = np.array(pictures.shape[2:]) - np.array(size)
    if (free < 0).any() or min(size) < 1:
        raise ShapeMismatch(f"a window of {size} in pictures of {pictures.shape[2:]}")
    # The minimum is for uniforms that were rounded up to 1 in a narrower type.
    corners = np.minimum(np.floor(uniforms * (free + 1)).astype(np.int64), free)
    rows = corners[:, 0, None] + np.arange(size[0])
    columns = corners[:, 1, None] + np.arange(size[1])
    each = np.arange(len(pictures))[:, None, None]
    cut: NDArray[Any] = pictures.transpose(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].transpose(
        0, 3, 1, 2
    )
    return cut


def _check_uniforms(pictures: NDArray[Any], uniforms: NDArray[np.floating], shape: tuple[int, ...]) -> None:
    if pictures.ndim != 4 or uniforms.shape != shape:
        raise ShapeMismatch(
            f"uniforms of {uniforms.shape} for pictures of {pictures.shape}: {shape} are needed"
        )


Floats = NDArray[np.float32]

_SAMPLE_SEED = 4_711
_COARSE = SolverSettings(evaluations=16)
_FINE = SolverSettings(evaluations=32)
_GAP = 2
_SHOWN = 192
NEAR = 0.6
"""A sample is suspiciously near to training pictures when held-out pictures are so many times farther away."""


@dataclass(frozen=True, slots=True)
class Nearness:
    """How far pictures are from the nearest training picture, in units of how far they are from the mean one;
    medians.
    """

    samples: float
    held_out: float

    @property
    def ratio(self) -> float:
        return self.samples / max(self.held_out, 1e-6)

    @property
    def warning(self) -> str:
        """What is to be said about it, or nothing."""
        if self.ratio >= NEAR:
            return ""
        return (
            f"overfitting: samples are {1 / max(self.ratio, 1e-3):.1f} times nearer to training pictures than "
            "held-out pictures are; stop earlier, add pictures, or use --flip and --set crop=true"
        )


def draw(
    network: nn.Module,
    start: Start,
    normal: Normalisation,
    count: int,
    *,
    shape: tuple[int, int, int],
    classes: int | None,
    at_once: int,
    fine: bool = False,
) -> Floats:
    """Pictures that a network draws, always from the same noise."""
    device = next(network.parameters()).device
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(_SAMPLE_SEED))
    denoiser = Denoiser(network, start.parameterisation, start.time_input)
    schedule = schedule_from_config(start.schedule)
    drawn: list[Tensor] = []
    for first in range(0, count, at_once):
        part = noise[first : first + at_once].to(device)
        cond = None
        if classes is not None:
            cond = {"y": (torch.arange(first, first + len(part)) % classes).to(device)}
        drawn.append(decode(part, denoiser, schedule, _FINE if fine else _COARSE, cond=cond).cpu())
    pictures: Floats = np.clip(normal.undo(torch.cat(drawn).numpy()), -1, 1)
    return pictures


def draw_sheet(pictures: Floats, path: Path) -> None:
    """A PNG of pictures (N, C, H, W) in [-1, 1], in rows, small ones enlarged."""
    count, channels, height, width = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        pixels = np.rint((picture.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
        sheet[top : top + height, left : left + width] = pixels
    image = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    scale = max(1, round(_SHOWN / max(height, width) / 2))
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    write_file(path, buffer.getvalue())


def nearness(source: PictureSource, drawn: Floats, *, flip: bool, most: int = 20_000) -> Nearness:
    """Distances of drawn pictures, and of held-out ones, to the nearest of up to `most` training pictures."""
    every = max(1, len(source.train) // most)
    own = middle(source.train[::every], drawn.shape[2:])
    train = metrics.reduced(expand(own))
    if flip:
        train = np.concatenate([train, metrics.reduced(expand(own[..., ::-1]))])
    held_out = metrics.reduced(expand(middle(source.held_out[:256], drawn.shape[2:])))
    found = (metrics.nearest(some, train) for some in (metrics.reduced(drawn), held_out))
    return Nearness(*(float(np.median(each)) for each in found))


def verdict(source: PictureSource, drawn: Floats, *, private: bool, by_class: bool) -> SampleVerdict | None:
    """Whether samples are of the domain, against held-out pictures; None where there are too few pictures."""
    size = source.shape[1:]
    held_out = middle(source.held_out, size)
    if private:
        return judge_samples(drawn, expand(held_out[::2]), expand(held_out[1::2]))
    weights = None
    if by_class and source.labels is not None:
        weights = 1.0 / np.bincount(source.labels)[source.labels]
    return judge_samples(drawn, expand(held_out), expand(middle(source.train, size)), weights)


def can_judge(source: PictureSource, *, private: bool) -> bool:
    """Whether there are pictures enough for `verdict`."""
    held_out = len(source.held_out) // 2 if private else len(source.held_out)
    others = held_out if private else len(source.train)
    return held_out >= FEWEST and others >= 2 * FEWEST


def thresholds(source: PictureSource, units: Normalisation, *, private: bool = False) -> Thresholds | None:
    """What a translation must keep of a picture, from pairs of held-out and training pictures at the network's size."""
    size = source.shape[1:]
    if private:
        halves = [middle(source.held_out[first::2], size) for first in (0, 1)]
        return calibrate_by_chance(*halves, units=units) if len(source.held_out) > 1 else None
    return calibrate_by_chance(middle(source.held_out, size), middle(source.train, size), units=units)


def middle(pixels: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape[2:], size, strict=True))
    return pixels[:, :, top : top + size[0], left : left + size[1]]


HELD_OUT_PICTURES = 256
MEASURED_PICTURES, MEASURED_NUMBERS = 8_192, 1 << 28
"""At most so many pictures, and numbers in them, that a spectrum is measured of."""
_MEASURED_AT_ONCE = 64


class PictureTask:
    private = False
    """Whether training pictures may tell nothing but through gradients: then figures are of held-out pictures alone."""

    def __init__(self, config: TrainConfig, source: PictureSource, start: Start) -> None:
        self.config, self.source, self.start = config, source, start
        self.figures: dict[str, float] = {}
        self.normal = start.normal or normalisation(config, source)
        self._schedule = schedule_from_config(start.schedule)
        self._lambdas = LambdaSampler(self._schedule)
        self._batches = Batches(config, source, self.normal)

    def initial_network(self) -> nn.Module:
        network = new_network(self.start, self.config.seed)
        # Of a private run the spectrum stays that of the initial weights.
        if isinstance(network, UNet) and network.spectrum is not None and not self.private:
            network.spectrum.measure(self._moments())
        return network

    def averaged(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        return channels_last(network_with(self.start.network, state, device=device))

    def fetch(self, piece: Piece, device: torch.device) -> Samples:
        found = self._batches.take(piece.step, piece.first, piece.stop - piece.first)
        labels = None if found.labels is None else on_device(found.labels, device)
        return Samples(on_device(found.x0, device), on_device(found.eps, device), labels)

    def loss(self, network: nn.Module, piece: Piece, samples: Samples) -> tuple[Tensor, Tensor]:
        lams = self._lambdas(self._batches.levels(piece.step))
        # Only dropout asks torch for numbers; its masks are the one thing that the cut of a batch changes.
        torch.manual_seed((self.config.seed * 1_000_003 + piece.step) * 65_537 + piece.first & 2**63 - 1)
        found = self._losses(network, samples, lams[piece.first : piece.stop])
        return found.sum() / len(lams), found

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        samples = self._batches.held_out(HELD_OUT_PICTURES)
        count = len(samples.x0)
        places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        lams = self._lambdas(places)
        losses = []
        for first in range(0, count, at_once):
            part = slice(first, first + at_once)
            labels = None if samples.labels is None else samples.labels[part]
            piece = Samples(samples.x0[part], samples.eps[part], labels)
            losses.append(self._losses(network, piece, lams[part]).cpu())
        return float(torch.cat(losses).double().mean())

    def aside(self) -> NDArray[np.float32] | None:
        if self.start.classifies:
            return None
        held_out = middle(self.source.held_out, self.source.shape[1:])
        return expand(held_out[np.random.default_rng(self.config.seed).permutation(len(held_out))])

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        if self.start.classifies:
            return ""
        judged = last and can_judge(self.source, private=self.private)
        drawn = draw(
            trainer.averaged(),
            self.start,
            self.normal,
            max(self.config.samples, SAMPLES if judged else 0),
            shape=self.source.shape,
            classes=len(self.source.classes) if self.config.classes is not None else None,
            at_once=trainer.microbatch,
            fine=last,
        )
        shown = drawn[: self.config.samples]
        draw_sheet(shown, folder / "samples.png")
        near = nearness(self.source, shown, flip=self.config.flip)
        if not self.private:
            self.figures = {
                "nearest_training_picture": round(near.samples, 5),
                "nearest_training_picture_held_out": round(near.held_out, 5),
            }
        if last:
            real = middle(self.source.held_out[: self.config.samples], self.source.shape[1:])
            draw_sheet(expand(real), folder / "held-out.png")
        if judged:
            self._judge(trainer, drawn)
        return near.warning

    def _judge(self, trainer: Trainer, drawn: NDArray[np.float32]) -> None:
        """Compare samples with held-out pictures: have it said, and recorded among the figures."""
        try:
            found = verdict(
                self.source, drawn, private=self.private, by_class=self.config.classes is not None
            )
        except ExtraMissing as error:
            trainer.notes.append(
                f"samples are not compared with held-out pictures: {error.detail}; {error.hint}"
            )
            return
        if found is not None:
            self.figures |= found.figures()
            trainer.notes.append(found.sentence(trainer.step))

    def manifest(self) -> dict[str, Any]:
        config, source, start = self.config, self.source, self.start
        return {
            "role": "classifier" if start.classifies else "generator",
            "sample_kind": "picture",
            "sample_shape": source.shape,
            "network": start.network,
            "parameterisation": start.parameterisation,
            "time_input": start.time_input,
            "schedule": start.schedule,
            "normalisation": self.normal,
            "soften_sigma": config.soften_sigma,
            "picture": source.picture,
            "classes": source.classes if config.classes is not None else (),
            "data": source.note,
            "structure": None if start.classifies else self._thresholds(),
        }

    def _thresholds(self) -> Thresholds | None:
        return thresholds(self.source, self.normal, private=self.private)

    def ask(self, x0: Tensor, eps: Tensor, lams: Tensor) -> Question:
        return ask(self._schedule, self.start.parameterisation, self.start.time_input, x0, eps, lams)

    def _moments(self) -> Moments:
        """Of the first training pictures, as a step would have them."""
        channels, size, _ = self.source.shape
        found = Moments(channels, size)
        count = max(
            1, min(len(self.source.train), MEASURED_PICTURES, MEASURED_NUMBERS // (channels * size**2))
        )
        for first in range(0, count, _MEASURED_AT_ONCE):
            found.add(self._batches.take(0, first, min(_MEASURED_AT_ONCE, count - first)).x0)
        return found

    def _losses(self, network: nn.Module, samples: Samples, lams: Tensor) -> Tensor:
        device = next(network.parameters()).device
        x0, eps = (on_device(part, device) for part in (samples.x0, samples.eps))
        question = self.ask(x0, eps, lams)
        labels = None if samples.labels is None else on_device(samples.labels, device)
        extra = {} if labels is None or self.start.classifies else {"y": labels}
        x = question.x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            answer = network(x, question.times, **extra)
        if labels is not None and self.start.classifies:
            return functional.cross_entropy(answer.float(), labels, reduction="none")
        losses: Tensor = (answer.float() - question.target).square().mean((1, 2, 3))
        return losses

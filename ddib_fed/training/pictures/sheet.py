"""Sample sheets of a run on pictures, what samples are like, and thresholds of structure."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ddib_fed.diffusion.bridge import decode
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import schedule_from_config
from ddib_fed.files import write_file
from ddib_fed.metrics import copies
from ddib_fed.metrics.sample_verdict import FEWEST, SampleVerdict, judge_samples
from ddib_fed.metrics.structure import Thresholds, calibrate_by_chance
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.samples.folders import expand
from ddib_fed.training.pictures.initial import Start
from ddib_fed.training.pictures.sources import PictureSource

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
            "held-out pictures are; stop earlier, add pictures, or use --flip and --crop"
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
    train = copies.reduced(expand(own))
    if flip:
        train = np.concatenate([train, copies.reduced(expand(own[..., ::-1]))])
    held_out = copies.reduced(expand(middle(source.held_out[:256], drawn.shape[2:])))
    found = (copies.nearest(some, train) for some in (copies.reduced(drawn), held_out))
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

"""Where training pictures come from: a shipped domain, a folder of one's own, or arrays; all in memory.

The rule: held-out pictures are never trained on, and neither decide the normalisation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.errors import InputError, NotFinite, ShapeMismatch
from ddib_fed.models.manifest import DataNote, PictureFormat
from ddib_fed.models.normalisation import Normalisation
from ddib_fed.samples.folders import expand
from ddib_fed.training.config import PictureTrainConfig

Pixels = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.uint16]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

MIN_PICTURES = 8
QUANTUM = 2.0 / 255.0
"""One step of 8 bits."""
_MOMENT_PICTURES = 4096


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Pictures to train on.

    Attributes:
        name: What the domain is called when the config does not say.
        train: (N, C, H, W): float32 in [-1, 1], or uint8 or uint16 whose whole range is that.
        held_out: (M, C, H, W), as `train`; at least one.
        digest: Names the pictures.
        labels: Class of each training picture, (N,) int64, or None.
        held_out_labels: The same for `held_out`.
        classes: Names of the classes.
        picture: How a file becomes one of these pictures; goes into the manifest.
        note: Where the pictures come from; goes into the manifest.
        size: Height and width that the network gets; smaller than the pictures' when windows are cut from them.
        quantum: One quantisation step of the pictures, in units of [-1, 1]; 0 for none.
    """

    name: str
    train: Pixels
    held_out: Pixels
    digest: str
    labels: Labels | None = None
    held_out_labels: Labels | None = None
    classes: tuple[str, ...] = ()
    picture: PictureFormat | None = None
    note: DataNote | None = None
    size: int | None = None
    quantum: float = QUANTUM

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network gets."""
        channels, height, width = self.train.shape[1:]
        return (channels, self.size, self.size) if self.size is not None else (channels, height, width)


def array_source(
    name: str,
    train: Pixels,
    held_out: Pixels,
    *,
    labels: Sequence[int] | Labels | None = None,
    held_out_labels: Sequence[int] | Labels | None = None,
    classes: tuple[str, ...] = (),
    picture: PictureFormat | None = None,
    note: DataNote | None = None,
    size: int | None = None,
    quantum: float = QUANTUM,
) -> PictureSource:
    """Pictures that are in memory already; the arguments are the attributes of `PictureSource`.

    Raises:
        ShapeMismatch: The arrays are not (N, C, H, W) of one C, H and W with 1 or 3 channels.
        NotFinite: There is a NaN or an infinity.
        InputError: There are too few pictures, values lie outside [-1, 1], or labels do not fit.
    """
    for part, pixels in (("training", train), ("held-out", held_out)):
        _check_pixels(name, part, pixels, train.shape[1:])
    if len(train) < MIN_PICTURES:
        raise InputError(
            f"{name} has {len(train)} training pictures; at least {MIN_PICTURES} are needed",
            hint="add pictures",
        )
    given = _labels(name, labels, len(train), len(classes))
    return PictureSource(
        name=name,
        train=train,
        held_out=held_out,
        digest=_digest(train, held_out, given),
        labels=given,
        held_out_labels=_labels(name, held_out_labels, len(held_out), len(classes)),
        classes=classes,
        picture=picture or PictureFormat(low=0.0, high=255.0, bits=8),
        note=note,
        size=size,
        quantum=quantum,
    )


def shipped_source(name: str) -> PictureSource:
    """The pictures of a shipped domain.

    Raises:
        DomainNotFound: There is no such domain.
        ExtraMissing: The package that carries its pictures is not installed.
    """
    pictures = load_shipped(name)
    domain = pictures.domain
    note = DataNote(source=domain.package, licence=domain.licence, note=domain.note)
    return array_source(name, pictures.train, pictures.held_out, note=note)


def normalisation(config: PictureTrainConfig, source: PictureSource) -> Normalisation:
    """Mean and deviation of the training pictures as the config wants them, rounded to what a manifest shows well.

    Raises:
        InputError: A channel does not vary at all.
    """
    if config.normalise == "none":
        return Normalisation(colours=config.colours)
    every = max(1, len(source.train) // _MOMENT_PICTURES)
    raw = Normalisation(colours=config.colours)
    sample = raw.recoloured(expand(source.train[::every]).astype(np.float64))
    axes = (0, 2, 3) if config.normalise == "channel" and sample.shape[1] > 1 else (0, 1, 2, 3)
    mean, std = np.atleast_1d(sample.mean(axis=axes)), np.atleast_1d(sample.std(axis=axes))
    if not (std > 1e-4).all():
        raise InputError(
            f"nothing varies in the pictures of {source.name}",
            hint="check the range: `--range` maps raw values to [-1, 1]",
        )
    means, stds = (tuple(float(f"{value:.5g}") for value in part) for part in (mean, std))
    if len(means) == 1:
        return raw.model_copy(update={"mean": means[0], "std": stds[0]})
    return raw.model_copy(update={"mean": means, "std": stds})


def _check_pixels(name: str, part: str, pixels: Pixels, shape: tuple[int, ...]) -> None:
    if pixels.ndim != 4 or pixels.shape[1:] != shape or shape[0] not in (1, 3) or len(pixels) == 0:
        raise ShapeMismatch(
            f"the {part} pictures of {name} are {pixels.shape}, not (N, C, H, W) of one size with 1 or 3 channels",
            hint="one array of pictures, at least one of them",
        )
    if pixels.dtype not in (np.float32, np.uint8, np.uint16):
        raise InputError(f"the {part} pictures of {name} are {pixels.dtype}, not float32, uint8 or uint16")
    if pixels.dtype == np.float32:
        low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite([low, high]).all():
            raise NotFinite(f"the {part} pictures of {name} hold NaN or infinity", hint="clean them")
        if low < -1.001 or high > 1.001:
            raise InputError(
                f"the {part} pictures of {name} reach from {low:g} to {high:g}", hint="bring them to [-1, 1]"
            )


def _labels(name: str, labels: Sequence[int] | Labels | None, count: int, classes: int) -> Labels | None:
    if labels is None:
        return None
    found = np.asarray(labels, dtype=np.int64)
    if found.shape != (count,) or not classes or found.min() < 0 or found.max() >= classes:
        raise InputError(f"the labels of {name} are not {count} numbers from 0 to {classes - 1}")
    return found


def _digest(train: Pixels, held_out: Pixels, labels: Labels | None) -> str:
    digest = hashlib.sha256()
    for part in (train, held_out, *(() if labels is None else (labels,))):
        digest.update(f"{part.dtype} {part.shape} ".encode())
        digest.update(np.ascontiguousarray(part).data)
    return f"pictures:{digest.hexdigest()}"

"""Turns a bundle into one side of a bridge of pictures: its units, its classes and what guides it.

The rule: a model that needs a class is told one, and a class is never dropped in silence.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.sharding import parse_devices
from ddib_fed.diffusion.bridge import Side
from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.guidance import ClassifierFree, ClassifierGuided, Clipped, check_guidance
from ddib_fed.diffusion.solvers import Draw
from ddib_fed.errors import NotFinite, SettingsInvalid, ShapeMismatch
from ddib_fed.models.bundle import Bundle, check_guide
from ddib_fed.models.normalisation import Normalisation

Floats = NDArray[np.float32]
Labels = int | Sequence[int] | None
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Guidance:
    """How a class is pressed for.

    Attributes:
        scale: Of classifier-free guidance; None for none. 1 follows the conditional model itself.
        classifier: A bundle whose role is "classifier", for classifier guidance.
        classifier_scale: Its weight; None for 1, and where there is no classifier.
        encoding: Whether encoding is guided too. Then a cycle closes, but latents are no longer noise; the public
            code guides decoding alone.
        clip: Whether decoding holds predictions of the picture within [-1, 1], as the public code does; the map is
            then no longer invertible. For models whose units are [-1, 1] alone.

    Raises:
        SettingsInvalid: A part that has no effect without another one that is missing, or both kinds at once.
    """

    scale: float | None = None
    classifier: Bundle | None = None
    classifier_scale: float | None = None
    encoding: bool = False
    clip: bool = False

    def __post_init__(self) -> None:
        """Refuse what would be without effect."""
        check_guidance(self.scale, self.classifier is not None, self.classifier_scale, encoding=self.encoding)

    @property
    def weight(self) -> float | None:
        """Of the classifier; None without one."""
        if self.classifier is None:
            return None
        return 1.0 if self.classifier_scale is None else self.classifier_scale


UNGUIDED = Guidance()


def require_class(side: PictureSide) -> None:
    """Return when a side that decodes has the class that its classifier-free guidance steers towards.

    Raises:
        SettingsInvalid: It is guided and has none: every prediction would be the unconditional one.
    """
    if side.guidance.scale is not None and side.label is None:
        raise SettingsInvalid(
            f"guidance {side.guidance.scale:g} needs a class, and none is given for {side.bundle.manifest.name}",
            hint="--target-class CLASS (to draw: --class CLASS), or leave --guidance out",
        )


class PictureSide:
    """A model of pictures that is ready to encode and decode.

    Args:
        bundle: The model.
        device: Where it computes.
        dtype: Of its network; what is integrated stays float32.
        label: Class of all pictures, or one for each of them; None for none.
        guidance: How the class is pressed for.

    Attributes:
        bundle: As given.
        label: As given.
        guidance: As given.

    Raises:
        ShapeMismatch: The bundle is one of points.
        SettingsInvalid: A class that the model does not have, none where it needs one, or guidance that it cannot have.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        label: Labels = None,
        guidance: Guidance = UNGUIDED,
    ) -> None:
        if bundle.manifest.sample_kind != "picture" or bundle.manifest.role != "generator":
            raise ShapeMismatch(
                f"{bundle.manifest.name} is no model that makes pictures",
                hint="ddib model show tells what it is",
            )
        self.bundle = bundle
        self.label = label
        self.guidance = guidance
        self._device = torch.device(device)
        self._classes = _classes(bundle, guidance)
        self._needed = guidance.classifier is not None
        self._check_label(label)
        _check_guidance(bundle, guidance)
        self._made = _Made(bundle, guidance, dtype, self._device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its pictures."""
        channels, height, width = self.bundle.manifest.sample_shape
        return channels, height, width

    def of_class(self, label: Labels) -> PictureSide:
        """The same model for another class; the network is shared.

        Raises:
            SettingsInvalid: As the class.
        """
        self._check_label(label)
        other = copy.copy(self)
        other.label = label
        return other

    def encoding(self, rows: slice, count: int, soften_sigma: float = 0.0) -> Side:
        """What encodes the pictures at `rows` of `count`."""
        guided = self.guidance.encoding
        denoiser = self._made.guided if guided else self._made.plain
        cond = self._condition(rows, count, guided=guided)
        return Side(denoiser, self.bundle.schedule, soften_sigma, cond)

    def decoding(self, rows: slice, count: int) -> Side:
        """What decodes the latents at `rows` of `count`."""
        cond = self._condition(rows, count, guided=self.guidance.classifier is not None)
        return Side(self._made.guided, self.bundle.schedule, cond=cond)

    def to_model(self, x: Floats) -> Tensor:
        """Pictures (N, C, H, W) from [-1, 1] to the model's units, on its device."""
        return torch.from_numpy(self.bundle.manifest.normalisation.apply(x)).to(self._device)

    def from_model(self, x: Tensor) -> Floats:
        """Pictures (N, C, H, W) from the model's units to [-1, 1], beyond which some may lie.

        Raises:
            NotFinite: There is a NaN or an infinity.
        """
        pictures: Floats = self.bundle.manifest.normalisation.undo(x.cpu().numpy())
        if not np.isfinite(pictures).all():
            raise NotFinite(
                f"{self.bundle.manifest.name} answered with NaN or infinity",
                hint="compute in float32; train the model again if that does not help",
            )
        return pictures

    def noise(self, digests: Sequence[bytes], purpose: str) -> Tensor:
        """Standard normal (N, C, H, W) on the model's device, one seed for each digest, purpose and model."""
        rows = []
        for digest in digests:
            mixed = hashlib.sha256(digest + f" {purpose} {self.bundle.digest}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(mixed[:8], "little"))
            rows.append(torch.randn(self.shape, generator=generator))
        return torch.stack(rows).to(self._device)

    def draw(self, digests: Sequence[bytes], purpose: str) -> Draw:
        """The noise of each step of decoding these pictures: as `noise`, and the step's number."""
        return lambda step: self.noise(digests, f"{purpose} step {step}")

    def _check_label(self, label: Labels) -> None:
        manifest, classes = self.bundle.manifest, self._classes
        if label is None:
            if self._needed or (manifest.num_classes is not None and manifest.null_class is None):
                raise SettingsInvalid(
                    f"{manifest.name} needs a class", hint=f"choose one of 0 to {(classes or 1) - 1}"
                )
            return
        if classes is None:
            raise SettingsInvalid(f"{manifest.name} has no classes", hint="leave the class out")
        found = np.atleast_1d(np.asarray(label, dtype=np.int64))
        if found.size == 0 or found.min() < 0 or found.max() >= classes:
            raise SettingsInvalid(
                f"{manifest.name} has the classes 0 to {classes - 1}, not {label}", facts={"classes": classes}
            )

    def _condition(self, rows: slice, count: int, *, guided: bool) -> Condition:
        """The classes of the pictures at `rows`; none where nothing is told them."""
        if self.bundle.manifest.num_classes is None and not guided:
            return None
        label = self.bundle.manifest.null_class if self.label is None else self.label
        if label is None:
            return None
        every = np.broadcast_to(np.asarray(label, dtype=np.int64), (count,))
        return {"y": torch.from_numpy(every[rows].copy()).to(self._device)}


def _classes(bundle: Bundle, guidance: Guidance) -> int | None:
    """How many classes can be asked for: the model's, or those of the classifier that guides it."""
    if guidance.classifier is None:
        return bundle.manifest.num_classes
    if guidance.classifier.manifest.role != "classifier":
        raise SettingsInvalid(
            f"{guidance.classifier.manifest.name} is no classifier of noisy pictures",
            hint="ddib model show tells what it is",
        )
    check_guide(bundle.manifest, guidance.classifier.manifest)
    return guidance.classifier.manifest.num_classes


def _check_guidance(bundle: Bundle, guidance: Guidance) -> None:
    name = bundle.manifest.name
    if guidance.scale is not None and bundle.manifest.null_class is None:
        raise SettingsInvalid(
            f"{name} has no class for none, which classifier-free guidance needs",
            hint="use a classifier, or train a model with dropped labels",
        )
    if guidance.clip and bundle.manifest.normalisation != Normalisation():
        raise SettingsInvalid(
            f"predictions of {name} cannot be clipped: its units are not those of [-1, 1]",
            hint="--no-clip leaves them as they are",
        )


class _Made:
    """The denoisers of a side, made when they are first asked for: a side that is only checked costs no network."""

    def __init__(self, bundle: Bundle, guidance: Guidance, dtype: torch.dtype, device: torch.device) -> None:
        self._bundle, self._guidance = bundle, guidance
        self._dtype, self._device = dtype, device

    @cached_property
    def plain(self) -> Denoiser:
        """As it was trained."""
        return self._bundle.denoiser(self._dtype, self._device)

    @cached_property
    def guided(self) -> Denoiser:
        """With what clips it and what guides it around it, in the public code's order."""
        guidance = self._guidance
        inner: Denoiser = Clipped(self.plain) if guidance.clip else self.plain
        null_class = self._bundle.manifest.null_class
        if guidance.scale is not None and null_class is not None:
            return ClassifierFree(inner, guidance.scale, null_class)
        if guidance.classifier is not None:
            classifier = guidance.classifier.classifier(self._dtype, self._device)
            return ClassifierGuided(inner, classifier, guidance.weight or 0.0)
        return inner


def open_side(
    bundle: Bundle, device: str, dtype: str, *, label: Labels = None, guidance: Guidance = UNGUIDED
) -> PictureSide:
    """A side on the device and with the dtype of these names.

    Raises:
        ShapeMismatch, SettingsInvalid: As `PictureSide`, and for a device or dtype that is not there.
    """
    if dtype not in DTYPES:
        raise SettingsInvalid(f"there is no dtype {dtype!r}", hint=", ".join(DTYPES))
    found = parse_devices(device)
    if len(found) != 1:
        raise SettingsInvalid(f"{device!r} is more than one device", hint="name one: cpu or cuda:0")
    return PictureSide(bundle, device=found[0], dtype=DTYPES[dtype], label=label, guidance=guidance)

"""A bundle that is ready to encode and decode: units, classes, guidance and networks, for points and pictures alike."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.model.kept_plans import KeptPlans
from ddib_fed.diffusion import bridge
from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.levels.learned import Frame
from ddib_fed.diffusion.plans import Plan, SolverSettings
from ddib_fed.diffusion.transfers import on_device
from ddib_fed.diffusion.wrapped.guidance import Classifier, ClassifierFree, ClassifierGuided, Clipped
from ddib_fed.diffusion.wrapped.rotation import Rotated, rotated
from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.manifest import check_guide
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.networks.encoders import SHARES, SharedWithLinear, spectrum_of
from ddib_fed.networks.spectral_frame import SpectralFrame

if TYPE_CHECKING:
    from ddib_fed.models.manifest import Manifest

Array = NDArray[np.float32]
Labels = int | Sequence[int] | None
"""One class for all samples, one for each, or none."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Denoisers that are kept, by guidance and basis: queries that share the object are merged into one network call.
MAX_WRAPPED = 16


class DomainModel:
    """A model of one domain."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compiling: str = "auto",
        classifier: Bundle | None = None,
    ) -> None:
        if bundle.manifest.role != "generator":
            raise BundleInvalid(
                f"{bundle.manifest.name} is a {bundle.manifest.role}, and only a generator encodes and decodes",
                hint="name the folder of the model that it classifies for; ddib model show says what one is",
            )
        if classifier is not None:
            _check_classifier(bundle, classifier)
        self.bundle = bundle
        self.classifier = classifier
        self.device = torch.device(device)
        self.dtype = dtype
        self._compiling = compiling
        self._wrapped: dict[tuple[Guidance, ChannelMap | None, str], Denoiser] = {}
        self.plans = KeptPlans(bundle.schedule, bundle.learned)
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.manifest.sample_shape)

    @property
    def is_picture(self) -> bool:
        return self.manifest.sample_kind == "picture"

    @cached_property
    def plain(self) -> Denoiser:
        return self.bundle.denoiser(self.dtype, self.device, self._compiling)

    def denoiser(
        self,
        guidance: Guidance = UNGUIDED,
        calibration: ChannelMap | None = None,
        encoder: str = "ode",
    ) -> Denoiser:
        """The network with what clips it and what guides it around it, in the public code's order, and in its basis."""
        key = guidance, calibration, encoder
        with self._lock:
            found = self._wrapped.get(key)
            if found is None:
                found = self._guided(guidance)
                if encoder != "ode":
                    self.check_encoder(encoder, guidance)
                    found = SharedWithLinear(found, SHARES[encoder])
                found = self.bundle.over_samples(found)
                if calibration is not None:
                    found = Rotated(found, self._rotation(calibration))
                if len(self._wrapped) >= MAX_WRAPPED:
                    del self._wrapped[next(iter(self._wrapped))]
                self._wrapped[key] = found
            return found

    def plan(self, settings: SolverSettings, soften_sigma: float = 0.0) -> Plan:
        return self.plans.plan(settings, soften_sigma)

    def frame(self, calibration: ChannelMap | None = None) -> Frame | None:
        """The coordinates in which learned steps of a spectral network are integrated; None where there are none."""
        spectrum = None if self.bundle.tile is not None else spectrum_of(self.plain.network)
        if spectrum is None:
            return None
        return SpectralFrame(spectrum, None if calibration is None else self._rotation(calibration))

    def sigma(self, soften: float | None = None) -> float:
        return self.manifest.soften_sigma if soften is None else soften

    # Units

    def normalise(self, samples: Array) -> Array:
        with np.errstate(over="ignore"):
            return self.manifest.normalisation.apply(samples)

    def denormalise(self, samples: Array) -> Array:
        return self.manifest.normalisation.undo(samples)

    def tensor(self, samples: Array) -> Tensor:
        return on_device(torch.from_numpy(samples.copy()), self.device)

    def softened(self, x: Tensor, sigma: float, noise: Array | None) -> Tensor:
        return bridge.soften(x, sigma, None if noise is None else self.tensor(noise))

    def into_basis(self, x: Tensor, calibration: ChannelMap | None) -> Tensor:
        return x if calibration is None else rotated(x, self._rotation(calibration).to(x.dtype))

    def out_of_basis(self, x: Tensor, calibration: ChannelMap | None) -> Tensor:
        return x if calibration is None else rotated(x, self._rotation(calibration).T.to(x.dtype))

    def check_encoder(self, encoder: str, guidance: Guidance = UNGUIDED) -> None:
        """Return when the model can encode so; guidance is that of encoding."""
        if encoder == "ode":
            return
        if guidance.steers:
            raise SettingsInvalid(
                f"the encoder {encoder} cannot be guided",
                hint="--guide decode, or leave --encoder out",
                facts={"field": "encoder"},
            )
        if spectrum_of(self.plain.network) is None:
            raise SettingsInvalid(
                f"{self.manifest.name} has no mean and spectrum of its pictures, which the encoder {encoder} needs",
                hint="leave --encoder out; ddib model train makes picture models with a spectrum",
                facts={"field": "encoder"},
            )

    def classes(self, guidance: Guidance = UNGUIDED) -> int:
        """How many classes can be asked for: the model's, or those of the classifier that guides it; 0 for none."""
        if guidance.classifier_scale is not None and self.classifier is not None:
            return self.classifier.manifest.num_classes or 0
        return self.manifest.num_classes or 0

    def class_rows(self, label: Labels, rows: int, guidance: Guidance = UNGUIDED) -> NDArray[np.int64] | None:
        """The class index that the network gets for each of `rows` samples, (rows,) int64; None without a class."""
        if self.manifest.num_classes is None and guidance.classifier_scale is None:
            return None
        index = self.manifest.null_class if label is None else label
        if index is None:
            return None
        return np.broadcast_to(np.asarray(index, dtype=np.int64), (rows,)).copy()

    def condition(self, label: Labels, rows: int, guidance: Guidance = UNGUIDED) -> Condition:
        return self.condition_of(self.class_rows(label, rows, guidance))

    def condition_of(self, classes: NDArray[np.int64] | None) -> Condition:
        return None if classes is None else {"y": on_device(torch.from_numpy(classes), self.device)}

    @cached_property
    def _classifier(self) -> Classifier:
        assert self.classifier is not None  # `check_guidance` was asked before
        return self.classifier.classifier(self.dtype, self.device)

    def _rotation(self, calibration: ChannelMap) -> Tensor:
        return torch.from_numpy(calibration.matrix).to(self.device, torch.float32)

    def _guided(self, guidance: Guidance) -> Denoiser:
        inner: Denoiser = Clipped(self.plain) if guidance.clip else self.plain
        null_class = self.manifest.null_class
        if guidance.scale is not None and null_class is not None:
            return ClassifierFree(inner, guidance.scale, null_class)
        if guidance.classifier_scale is not None:
            return ClassifierGuided(inner, self._classifier, guidance.classifier_scale)
        return inner


def pixels(model: DomainModel) -> int:
    return math.prod(model.sample_shape[1:])


def _check_classifier(bundle: Bundle, classifier: Bundle) -> None:
    if classifier.manifest.role != "classifier":
        raise SettingsInvalid(
            f"{classifier.manifest.name} is no classifier of noisy pictures",
            hint="ddib model show tells what it is",
        )
    check_guide(bundle.manifest, classifier.manifest)

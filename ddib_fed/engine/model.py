"""A bundle that is ready to encode and decode, for points and pictures alike, and what it can be asked for."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ddib_fed.diffusion.denoiser import Condition, Denoiser, on_device
from ddib_fed.diffusion.guidance import (
    Classifier,
    ClassifierFree,
    ClassifierGuided,
    Clipped,
    Part,
    Rotated,
    Tiling,
    rotated,
    scaled,
)
from ddib_fed.diffusion.plans import FLOW_MAP, Plan, SolverSettings, plan
from ddib_fed.diffusion.schedule import LEARNED_GRID, require
from ddib_fed.diffusion.solvers import Recurrence, walk
from ddib_fed.engine.party import Array, Labels
from ddib_fed.errors import BundleInvalid, NotFinite, PictureMisfit, SettingsInvalid, ShapeMismatch
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.manifest import LatentSpace, check_guide
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.networks.spectrum import SharedWithLinear, Whitened, spectrum_of
from ddib_fed.record import UNGUIDED, Guidance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Denoisers that are kept, by guidance and basis: queries that share the object are merged into one network call.
MAX_WRAPPED = 16
MAX_PLANS = 64  # that are kept: each item of a job has its job's
FARTHEST = 3.0
"""A number beyond it lies a whole range outside of [-1, 1]: the pictures are of another scale, as 0 to 255."""


WHOLE = 1 << 18
"""Pixels or voxels of one call, such as 512 x 512 or 64^3; what is larger, and than what it was trained on, is encoded
and decoded in overlapping tiles of that, so that memory has a bound."""


class DomainModel:
    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        classifier: Bundle | None = None,
    ) -> None:
        if bundle.manifest.role != "generator":
            raise BundleInvalid(
                f"{bundle.manifest.name} is a {bundle.manifest.role}, and only a generator encodes and decodes",
                hint="name the folder of the model that it classifies for; ddib model show says what one is",
            )
        if classifier is not None:
            if classifier.manifest.role != "classifier":
                raise SettingsInvalid(
                    f"{classifier.manifest.name} is no classifier of noisy pictures",
                    hint="ddib model show tells what it is",
                )
            check_guide(bundle.manifest, classifier.manifest)
        self.bundle, self.manifest, self.classifier = bundle, bundle.manifest, classifier
        self.sample_shape = tuple(bundle.manifest.sample_shape)
        self.latent_shape = bundle.manifest.latent_shape
        """Of what the ODE runs on, and of what crosses; differs from a sample's shape behind an autoencoder."""
        self.is_picture = bundle.manifest.sample_kind != "point"
        """Whether samples are pictures or volumes, and no points."""
        self.device, self.dtype = torch.device(device), dtype
        self._lock = threading.Lock()
        self._denoiser = lru_cache(MAX_WRAPPED)(self._wrapped)
        self.plan = lru_cache(MAX_PLANS)(self._plan)

    @cached_property
    def plain(self) -> Denoiser:
        return self.bundle.denoiser(self.dtype, self.device)

    def denoiser(
        self,
        guidance: Guidance = UNGUIDED,
        calibration: ChannelMap | None = None,
        share: float = 1.0,
        *,
        whitened: bool = False,
    ) -> Denoiser:
        """The network, clipped and guided in the public code's order, and in its basis; one object for one argument."""
        with self._lock:
            return self._denoiser(guidance, calibration, share, whitened)

    def _wrapped(
        self, guidance: Guidance, calibration: ChannelMap | None, share: float, whitened: bool
    ) -> Denoiser:
        denoiser: Denoiser = Clipped(self.plain) if guidance.clip else self.plain
        null_class = self.manifest.null_class
        if guidance.guidance is not None and null_class is not None:
            denoiser = ClassifierFree(denoiser, guidance.guidance, null_class)
        elif guidance.classifier_scale is not None:
            denoiser = ClassifierGuided(denoiser, self._classifier, guidance.classifier_scale)
        if share < 1.0:
            self.check_share(share, guidance)
            denoiser = SharedWithLinear(denoiser, share)
        require(
            self.spectral or not whitened,
            "the learned steps are for pictures of the model's own size, whitened by its spectrum",
            "use grid=default here",
            grid=LEARNED_GRID,
        )
        denoiser = Whitened(denoiser) if whitened else self.bundle.over_samples(denoiser)
        return denoiser if calibration is None else Rotated(denoiser, self._rotation(calibration))

    @cached_property
    def _classifier(self) -> Classifier:
        assert self.classifier is not None  # `check_guidance` was asked before
        return self.classifier.classifier(self.dtype, self.device)

    def _plan(self, settings: SolverSettings, soften_sigma: float = 0.0) -> Plan:
        bundle = self.bundle
        if settings.grid == "default" and bundle.manifest.sample_kind == "volume":
            # The mean of 32,768 voxels outweighs noise a thousand times earlier than a voxel does: at 24 evaluations
            # round trips of the shipped models have 28 and 35 dB instead of 9 and 14.
            settings = replace(settings, grid="uniform-lambda")
        return plan(settings, bundle.schedule, soften_sigma=soften_sigma, learned=bundle.learned)

    @cached_property
    def spectral(self) -> bool:
        """Whether learned steps may be of whitened pictures: of a spectral network, at its own size."""
        return self.bundle.tile is None and spectrum_of(self.plain.network) is not None

    def integrate(self, x: Tensor, steps: Recurrence, *, share: float = 1.0, **more: Any) -> Tensor:
        """Walk steps from x (N, *latent_shape) alone; `more` is as of `solvers.integrate`."""
        return walk(x, steps, self.denoiser(share=share, whitened=steps.whitened), **more)

    def sigma(self, soften: float | None = None) -> float:
        return self.manifest.soften_sigma if soften is None else soften

    @cached_property
    def codec(self) -> "Codec | None":
        """The autoencoder before and behind the ODE; None without."""
        autoencoder, latents = self.bundle.autoencoder, self.manifest.latents
        return Codec(autoencoder, latents, self.device) if autoencoder and latents else None

    def into_units(self, samples: Array) -> Tensor:
        """Convert samples (N, *sample_shape) to the units of the ODE (N, *latent_shape), on the model's device."""
        x = self.tensor(self.normalise(samples))
        return x if self.codec is None else self.codec.encode(x)

    def out_of_units(self, x: Tensor) -> Array:
        """The inverse of `into_units`, but for what an autoencoder loses."""
        codec = self.codec
        samples = x if codec is None else codec.decode(x.to(self.device), self.sample_shape[1:])
        return self.denormalise(samples.cpu().numpy())

    def normalise(self, samples: Array) -> Array:
        """Samples in the units of the first network, which may be an autoencoder's."""
        with np.errstate(over="ignore"):
            return into_network(self.bundle, samples)

    def denormalise(self, samples: Array) -> Array:
        return out_of_network(self.bundle, samples)

    def tensor(self, samples: Array) -> Tensor:
        return on_device(torch.from_numpy(samples.copy()), self.device)

    def into_basis(self, x: Tensor, calibration: ChannelMap | None) -> Tensor:
        return x if calibration is None else rotated(x, self._rotation(calibration).to(x.dtype))

    def out_of_basis(self, x: Tensor, calibration: ChannelMap | None) -> Tensor:
        return x if calibration is None else rotated(x, self._rotation(calibration).T.to(x.dtype))

    def _rotation(self, calibration: ChannelMap) -> Tensor:
        return torch.from_numpy(calibration.matrix).to(self.device, torch.float32)

    def classes(self, guidance: Guidance = UNGUIDED) -> int:
        """Return the number of classes of the model, or of the classifier that guides it; 0 for none."""
        guided = guidance.classifier_scale is not None and self.classifier is not None
        manifest = self.classifier.manifest if guided and self.classifier is not None else self.manifest
        return manifest.num_classes or 0

    def class_rows(self, label: Labels, rows: int, guidance: Guidance = UNGUIDED) -> NDArray[np.int64] | None:
        """The class index that the network gets for each of `rows` samples, (rows,) int64; None without a class."""
        if self.manifest.num_classes is None and guidance.classifier_scale is None:
            return None
        index = self.manifest.null_class if label is None else label
        return None if index is None else np.broadcast_to(np.asarray(index, dtype=np.int64), (rows,)).copy()

    def condition(self, classes: NDArray[np.int64] | Sequence[int] | None) -> Condition:
        """Return the network's condition for the class of each sample; None without classes."""
        return None if classes is None else {"y": on_device(torch.as_tensor(classes), self.device)}

    def check_share(self, share: float, guidance: Guidance = UNGUIDED) -> None:
        """Raise SettingsInvalid unless the model can encode, or decode back, at this share."""
        if share == 1.0:
            return
        require(
            not guidance.steers,
            f"a share of {share:g} cannot be guided on the way back",
            "--share 1, or leave --cycle out",
            field="share",
        )
        require(
            spectrum_of(self.plain.network) is not None,
            f"{self.manifest.name} has no mean and spectrum of its pictures, which a share of {share:g} needs",
            "--share 1; ddib model train makes picture models with a spectrum",
            field="share",
        )


def into_network(bundle: Bundle, samples: Array) -> Array:
    """In units of pixels, or of the autoencoder, before which the map of a calibration acts."""
    units, encoder = bundle.manifest.normalisation, bundle.autoencoder
    if encoder is None:
        return units.apply(samples)
    return encoder.manifest.normalisation.apply(units.mapped(samples))


def out_of_network(bundle: Bundle, samples: Array) -> Array:
    units, encoder = bundle.manifest.normalisation, bundle.autoencoder
    if encoder is None:
        return units.undo(samples)
    pictures = encoder.manifest.normalisation.undo(samples)
    return pictures if units.calibrated is None else units.undo(units.plain.apply(pictures))


class Codec:
    """An autoencoder between samples in its units and latents; in half precision it would lose more than the ODE."""

    def __init__(self, autoencoder: Bundle, latents: LatentSpace, device: torch.device) -> None:
        self._network: Any = autoencoder.network(torch.float32, device)
        self._factor = autoencoder.factor
        self._tile = tuple(side // self._factor for side in autoencoder.manifest.sample_shape[1:])
        self._channels = latents.shape[0], autoencoder.manifest.sample_shape[0]
        units, axes = latents.normalisation, (1,) * len(self._tile)
        self._mean, self._std = (
            torch.tensor(part, dtype=torch.float32, device=device).reshape(-1, *axes)
            for part in (units.mean, units.std)
        )

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents (N, c, *sides) of samples (N, C, *sides), whose sides are filled up to what the autoencoder takes."""
        room = [(-side) % self._factor for side in reversed(x.shape[2:])]
        if any(room):
            x = functional.pad(x, [each for side in room for each in (0, side)], mode="replicate")
        latents = self._each(x, self._network.encode, self._channels[0], self._factor, 1)
        return (latents - self._mean) / self._std

    @torch.no_grad()
    def decode(self, z: Tensor, sides: tuple[int, ...]) -> Tensor:
        """Samples (N, C, *sides) of latents."""
        z = z * self._std + self._mean
        pictures = self._each(z, self._network.decode, self._channels[1], 1, self._factor)
        for axis, side in enumerate(sides, start=2):
            pictures = pictures.narrow(axis, 0, side)
        return pictures

    def _each(
        self, x: Tensor, call: Callable[[Tensor], Tensor], channels: int, given: int, made: int
    ) -> Tensor:
        """What `call` makes of the rows of x, by tiles where they are large; `given`, `made` are pixels of a place."""
        latent = tuple(side // given for side in x.shape[2:])
        pixels, trained = math.prod(latent) * self._factor ** len(latent), math.prod(self._tile)
        if pixels <= max(WHOLE, trained * self._factor ** len(latent)):
            rows = max(1, WHOLE // pixels)
            return torch.cat([call(part) for part in torch.split(x, rows)])
        tile = tuple(min(side, length) for side, length in zip(self._tile, latent, strict=True))
        tiling = Tiling(latent, tile, made)
        whole = x.new_zeros(len(x), channels, *(made * side for side in latent))
        for part, weight in zip(tiling.parts, tiling.weights, strict=True):
            own = weight.to(x.device)
            taken: Part = (slice(None), *scaled(part, given))
            put: Part = (slice(None), *scaled(part, made))
            for row, into in zip(x, whole, strict=True):
                into[put] += own * call(row[taken][None])[0]
        return whole


def pixels(model: DomainModel) -> int:
    """Return the number of pixels or voxels of one sample that the network takes."""
    return math.prod(model.latent_shape[1:])


def check_samples(model: DomainModel, samples: Array, *, latents: bool = False) -> None:
    """Raise unless samples (N, *sample_shape), or latents (N, *latent_shape), have N >= 1 and are finite."""
    shape = model.latent_shape if latents else model.sample_shape
    if samples.ndim != len(shape) + 1 or samples.shape[1:] != shape or samples.shape[0] == 0:
        expected = f"(N, {', '.join(map(str, shape))})"
        raise ShapeMismatch(
            f"an array of shape {samples.shape} where {model.manifest.name} takes {expected}",
            hint="both models must be of one sample shape",
            facts={"got": str(tuple(samples.shape)), "expected": expected},
        )
    if count := int(np.count_nonzero(~np.isfinite(samples))):
        raise NotFinite(
            f"{count} values of {model.manifest.name} are NaN or infinite",
            hint="compute in float32; train the model again if that does not help",
            facts={"not_finite": count},
        )


def check_given(model: DomainModel, samples: Array) -> None:
    """Check data in their own units as `check_samples` does, and the range of pictures."""
    check_samples(model, samples)
    low, high = float(samples.min()), float(samples.max())
    if model.is_picture and max(-low, high) > FARTHEST:
        raise PictureMisfit(
            f"pictures from {low:g} to {high:g} are not in [-1, 1]",
            hint="ddib_fed.data.fitting.read_fitted brings a file into [-1, 1]",
            facts={"holds": f"{low:g} to {high:g}", "takes": "-1 to 1"},
        )


def check_guidance(model: DomainModel, guidance: Guidance) -> None:
    name = model.manifest.name
    require(
        guidance.guidance is None or model.manifest.null_class is not None,
        f"{name} has no class for none, which classifier-free guidance needs",
        "use a classifier, or train a model with dropped labels",
        field="guidance",
    )
    require(
        guidance.classifier_scale is None or model.classifier is not None,
        f"classifier_scale {guidance.classifier_scale} weighs a classifier, and {name} has none",
        "add classifier=MODEL, or leave classifier-scale out",
        field="classifier_scale",
    )
    own_units = model.is_picture and model.manifest.normalisation != Normalisation()
    own_units |= model.bundle.autoencoder is not None
    require(
        not (guidance.clip and own_units),
        f"predictions of {name} cannot be clipped: its units are not those of [-1, 1]",
        'flags="--clip_denoised False" leaves them as they are',
        field="clip",
    )


def check_calibration(model: DomainModel, calibration: ChannelMap | None) -> None:
    """Raise SettingsInvalid unless the model can work in the basis of a calibration."""
    if calibration is None:
        return
    name, what = model.manifest.name, "pictures" if model.bundle.autoencoder is None else "latents"
    require(
        model.is_picture,
        f"{name} is a model of points, and a calibration maps the channels of pictures",
        "leave the calibration out; points are translated without one",
        field="calibration",
    )
    require(
        calibration.channels == model.latent_shape[0],
        f"the calibration maps {calibration.channels} channels, and {what} of {name} have {model.latent_shape[0]}",
        "ddib model show tells a model's shape; a calibration is for two models of one shape",
        field="calibration",
    )


def check_label(model: DomainModel, label: Labels, guidance: Guidance = UNGUIDED) -> None:
    """Raise SettingsInvalid unless the model, under this guidance, accepts the classes, or none."""
    manifest, classes = model.manifest, model.classes(guidance)
    facts: dict[str, str | float] = {"class": "none" if label is None else str(label), "classes": classes}
    if label is None:
        require(
            guidance.guidance is None,
            f"guidance {guidance.guidance} needs a class, and none is given for {manifest.name}",
            "--target-class CLASS, or leave guidance out",
        )
        optional = manifest.num_classes is None or manifest.null_class is not None
        require(
            optional and guidance.classifier_scale is None,
            f"{manifest.name} needs a class",
            hint=f"choose one of 0 to {classes - 1}",
            **facts,
        )
        return
    require(classes > 0, f"{manifest.name} has no classes", hint="leave the class out", **facts)
    labels = np.atleast_1d(np.asarray(label, dtype=np.int64))
    there = labels.size > 0 and labels.min() >= 0 and labels.max() < classes
    known = f"{manifest.name} has the classes 0 to {classes - 1}, not {label}"
    require(there, known, hint="ddib model show lists them", **facts)


def check_decoding(
    model: DomainModel, settings: SolverSettings, label: Labels, guidance: Guidance = UNGUIDED
) -> None:
    """Raise SettingsInvalid unless the model can compute this leg from noise to data."""
    model.plan(settings)
    check_steps(model.bundle, replace(settings, share=1.0), guidance)
    check_guidance(model, guidance)
    check_label(model, label, guidance)
    # The public code's DDPM takes another step for learned variances and for classifier guidance.
    why = "is guided by a classifier" if guidance.classifier_scale is not None else ""
    why = "learned its variance" if model.manifest.learns_variance else why
    require(
        not (settings.ancestral and why),
        f"{model.manifest.name} {why}, which the step of DDPM here leaves out",
        'flags="--eta 1" instead of --use_ddpm True',
    )


def check_encoding(
    model: DomainModel, settings: SolverSettings, label: Labels, soften: float | None = None
) -> None:
    """Raise SettingsInvalid unless the model can compute this leg from data to noise."""
    model.plan(settings.of_the_ode(), model.sigma(soften))
    check_steps(model.bundle, settings, UNGUIDED)
    model.check_share(settings.share)
    # A model without classes may be given the class that its classifier needs to decode.
    if model.manifest.num_classes is not None or model.classifier is None:
        check_label(model, label)


def check_steps(bundle: Bundle, settings: SolverSettings, guidance: Guidance) -> None:
    """Raise SettingsInvalid unless the model knows the steps of the settings' solver."""
    if settings.solver != FLOW_MAP:
        return
    name, facts = bundle.manifest.name, {"field": "solver", "solver": FLOW_MAP}
    require(
        bundle.manifest.is_flow_map,
        f"{name} was not distilled, and {FLOW_MAP} takes steps that only a distilled model knows",
        "grid=learned (ddib model tune), or solver=unipc"
        if len(bundle.manifest.sample_shape) > 1
        else f"ddib model distil {name} --out {name}-distilled makes one; or solver=unipc",
        **facts,
    )
    others = {
        f"a share of {settings.share:g}": settings.share < 1.0,
        "guidance": guidance.steers,
        "clipping": guidance.clip,
        "a scene of several tiles": bundle.tile is not None,
    }
    for what, asked in others.items():
        require(
            not asked,
            f"{FLOW_MAP} follows the ODE that {name} was distilled on, and {what} is no part of it",
            "solver=unipc, which works with a distilled model too; or leave it out",
            **facts,
        )

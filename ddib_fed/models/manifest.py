"""The manifest of a bundle: the validated fields of manifest.json, and their digest.

An unknown field is refused; so is a size that no model of ours could have, before anything is allocated.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from ddib_fed.datasets import DOMAINS, SHIPPED, ShippedDomain
from ddib_fed.diffusion.denoiser import Parameterisation, TimeInput
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.units import Normalisation
from ddib_fed.names import check_domain
from ddib_fed.networks.config import (
    ClassifierConfig,
    LibraryConfig,
    MlpConfig,
    NetworkConfig,
    SyntheticConfig,
    UNetConfig,
)
from ddib_fed.record import Frozen

MOST_NUMBERS = 1 << 30  # numbers in a sample or a latent at most: 4 GiB in float32


RANKS = {"point": 1, "picture": 3, "volume": 4}  # numbers in the shape of a sample


class DifferentialPrivacy(Frozen):
    unit: Literal["sample"] = "sample"
    epsilon: float = Field(gt=0, le=1e6)
    delta: float = Field(gt=0, lt=1)
    noise_multiplier: float = Field(gt=0, le=1e7)
    clip: float = Field(gt=0, allow_inf_nan=False)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    draws: int = Field(default=1, ge=1)
    accountant: Literal["prv", "rdp"] = "prv"
    initial: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


Spacing = Annotated[float, Field(gt=0.0, le=1000.0)]


class PictureFormat(Frozen):
    """How files of pictures or volumes become the network's, and back."""

    fit: Literal["pad", "crop", "resize"] = "resize"
    low: FiniteFloat = 0.0
    high: FiniteFloat = 255.0
    bits: Literal[8, 16] = 8
    intensity: str | None = Field(
        default=None, pattern=r"^[a-z]+(:[0-9.,e+-]+@[0-9.e+-]+:[0-9.e+-]+)?$", max_length=100
    )
    slices: Literal["axial", "coronal", "sagittal", "none"] | None = None  # none of volumes
    tiles: bool = False
    spacing: tuple[Spacing, Spacing, Spacing] | None = None  # of volumes, mm between voxels of each axis

    @model_validator(mode="after")
    def _rises(self) -> "PictureFormat":
        if self.low >= self.high:
            raise ValueError(f"the range {self.low} to {self.high} is empty")
        return self


def intensity_fields(rule: str, form: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Fields of a `PictureFormat` for a rule of `ddib translate`; `form` has black and white, where files say them."""
    _, _, span = rule.partition("@")
    if form and not span and form["intensity"] in {"values", "hu"}:
        return {**form, "intensity": rule}
    if rule == "hu":
        raise SettingsInvalid(
            "no file says which Hounsfield units are black and white",
            hint="--intensity window:CENTRE,WIDTH@LOW:HIGH, for example window:0,2000@-1000:1000",
        )
    low, high = map(float, (span or "0:255").split(":"))
    return {"low": low, "high": high, "bits": 8 if low >= 0.0 and high <= 255.0 else 16, "intensity": rule}


class DataNote(Frozen):
    source: str = Field(default="", max_length=2000)
    licence: str = Field(default="", max_length=2000)
    note: str = Field(default="", max_length=4000)


class StructureThresholds(Frozen):
    """The structure that a translation must keep of its source; with less it is doubtful.

    `count` pairs of unrelated pictures were compared; `classes` are two colours, in the model's units, that pixels
    gather around, and `differs` the share of pixels whose class may differ from the source's mapped picture's.
    """

    edge_correlation: float = Field(ge=-1.0, le=1.0)
    count: int = Field(ge=1)
    classes: tuple[tuple[FiniteFloat, ...], ...] = ()
    differs: float = Field(default=1.0, ge=0.0, le=1.0)


class LatentSpace(Frozen):
    """Where the ODE runs behind an autoencoder: the digest is of its network, the units of its input and its weights.

    `normalisation` leads from its latents to those of the ODE; of a scale factor s, mean 0 and deviation 1 / s.
    """

    shape: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(min_length=2, max_length=4)
    autoencoder_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    normalisation: Normalisation = Normalisation()


class Training(Frozen):
    command: str = Field(default="", max_length=2000)
    seed: int = 0
    steps: int = Field(default=0, ge=0)
    figures: dict[str, FiniteFloat] = Field(default_factory=dict)


class DistilledError(Frozen):
    """How far a distilled model is from its teacher at a number of evaluations, on held-out samples."""

    evaluations: int = Field(ge=1, le=10_000)
    encode: float = Field(ge=0.0)
    encode_p95: float = Field(ge=0.0)
    decode: float = Field(ge=0.0)
    decode_p95: float = Field(ge=0.0)
    round_trip: float = Field(ge=0.0)


class Distilled(Frozen):
    """What a distilled model was made from, and how well it follows that."""

    teacher: str = Field(pattern=r"^[0-9a-f]{64}$")
    teacher_name: str = Field(min_length=1, max_length=100)
    solver: str = Field(max_length=32)
    evaluations: int = Field(ge=1, le=10_000)
    samples: int = Field(ge=1)
    grid: str = Field(max_length=32)
    errors: tuple[DistilledError, ...] = Field(min_length=1, max_length=16)


class Manifest(Frozen):
    """The fields of manifest.json but its digest."""

    format_version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=100)
    domain: Annotated[str, AfterValidator(check_domain)]
    sample_kind: Literal["point", "picture", "volume"] = "point"
    sample_shape: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(min_length=1, max_length=4)
    network: NetworkConfig
    parameterisation: Parameterisation = "v"
    time_input: TimeInput = "lambda"
    schedule: ScheduleConfig = ScheduleConfig()
    normalisation: Normalisation = Normalisation()
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None
    soften_sigma: float = Field(default=0.0, ge=0.0, le=1.0)
    training: Training = Training()
    created: str = Field(default="", max_length=40)
    parameters: int = Field(default=0, ge=0)
    weights_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    role: Literal["generator", "classifier", "autoencoder"] = "generator"
    latents: LatentSpace | None = None
    picture: PictureFormat | None = None
    classes: tuple[Annotated[str, Field(max_length=200)], ...] = Field(default=(), max_length=100_000)
    data: DataNote | None = None
    structure: StructureThresholds | None = None
    distilled: Distilled | None = None
    differential_privacy: DifferentialPrivacy | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Manifest":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        network, shape, points = self.network, self.latent_shape, self.sample_kind == "point"
        dims = network.dims if isinstance(network, LibraryConfig) else 2
        if (numbers := max(math.prod(shape), math.prod(self.sample_shape))) > MOST_NUMBERS:
            yield f"a sample of {numbers:,} numbers is larger than {MOST_NUMBERS:,}"
        if isinstance(network, MlpConfig | SyntheticConfig):
            width = network.dim if isinstance(network, MlpConfig) else network.in_channels
            if not points or shape != (width,):
                yield f"sample_shape {shape} is not the network's point ({width},)"
        elif points or len(shape) != dims + 1 or shape[0] != network.in_channels:
            sides = ", ".join(("depth", "height", "width")[-dims:])
            yield f"sample_shape {shape} is not the network's {self.sample_kind} ({network.in_channels}, {sides})"
        else:
            pooled = isinstance(network, ClassifierConfig) and network.pool == "attention"
            spectral = not isinstance(network, ClassifierConfig) and bool(network.spectral)
            fixed = "attention pooling" if pooled else "a spectral network"
            only = network.spectral if isinstance(network, LibraryConfig) else (network.image_size,) * 2
            if (pooled or spectral) and shape[1:] != only:
                yield f"{fixed} is for {only} alone, not for {shape[1:]}"
            if spectral and (self.parameterisation, self.time_input) != ("v", "scaled-lambda"):
                yield "a spectral network predicts v and receives scaled-lambda"
            if any(side % network.divisor for side in shape[1:]):
                yield f"the sides of sample_shape {shape} do not divide by {network.divisor}"
        latents, channels = self.latents, self.normalisation.channels
        if latents is not None and latents.normalisation.channels - {shape[0]}:
            yield f"the latents' normalisation has another number of channels than {shape[0]}"
        encodes = isinstance(network, LibraryConfig) and network.is_autoencoder
        role = "autoencoder" if encodes else "generator"
        role = "classifier" if isinstance(network, ClassifierConfig) else role
        miscounted = self.classes and len(self.classes) != self.num_classes
        unexplained = self.is_flow_map != (self.distilled is not None)
        pictured = (self.picture, self.structure, self.normalisation.calibrated) != (None, None, None)
        rank, ranks, colours = len(self.sample_shape), RANKS[self.sample_kind], self.sample_shape[0]
        misplaced = role != "generator" or points or len(shape) != rank
        wrong = {
            f"the role {self.role} is not that of a network of kind {network.kind}": role != self.role,
            f"there are {len(self.classes)} names for {self.num_classes or 'no'} classes": miscounted,
            "points have no picture format, structure or calibration": points and pictured,
            f"the normalisation has another number of channels than {colours}": channels - {colours},
            f"a {self.sample_kind} has {ranks} numbers in sample_shape": rank != ranks,
            "only a generator has latents, with as many axes as its samples": latents is not None
            and misplaced,
            "a flow map, and no other network, says what it was distilled from": unexplained,
            "a flow map predicts means of v": self.is_flow_map and self.parameterisation != "v",
        }
        yield from (problem for problem, is_there in wrong.items() if is_there)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of what the ODE runs on: of a sample's latent, or of the sample where there is no autoencoder."""
        return self.sample_shape if self.latents is None else self.latents.shape

    @property
    def calibrated_units(self) -> tuple[Normalisation, ...]:
        """What a calibration may be in: the units of pictures, and of latents where there is an autoencoder."""
        plain, latents = self.normalisation.plain, self.latents
        if latents is None:
            return (plain,)
        return plain, latents.normalisation.model_copy(update={"autoencoder": latents.autoencoder_sha256})

    @property
    def autoencoder_sha256(self) -> str:
        """Of an autoencoder, what `LatentSpace.autoencoder_sha256` names."""
        named = {"network", "normalisation", "weights_sha256"}
        fields = self.model_dump(mode="json", include=named)
        return hashlib.sha256(_canonical(fields)).hexdigest()

    @property
    def is_flow_map(self) -> bool:
        return isinstance(self.network, MlpConfig) and self.network.flow_map

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the network is conditioned on or classifies; None without."""
        if isinstance(self.network, UNetConfig | LibraryConfig):
            return self.network.num_classes
        return self.network.out_channels if isinstance(self.network, ClassifierConfig) else None

    @property
    def learns_variance(self) -> bool:
        """Whether the network also predicts a variance."""
        network = self.network
        if isinstance(network, MlpConfig) or self.role != "generator":
            return False
        return network.out_channels != network.in_channels

    @property
    def null_class(self) -> int | None:
        """The index of the null class (classifier-free guidance); None if there is none."""
        network = self.network
        dropped = isinstance(network, UNetConfig) and network.class_dropout
        dropped |= isinstance(network, LibraryConfig) and network.has_null_class
        return self.num_classes if dropped else None

    def digest(self) -> str:
        """SHA-256, hex, of the fields as canonical JSON."""
        return hashlib.sha256(_canonical(self.model_dump(mode="json"))).hexdigest()


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def check_guide(generator: Manifest, classifier: Manifest) -> None:
    fields = ["sample_shape", "normalisation"]
    if classifier.time_input == "timestep":
        fields += ["schedule"]
    if generator.num_classes is not None:
        fields += ["num_classes"]
    if generator.classes and classifier.classes:
        fields += ["classes"]
    for field_name in fields:
        wanted, there = getattr(generator, field_name), getattr(classifier, field_name)
        if wanted != there:
            raise SettingsInvalid(
                f"the classifier {classifier.name} does not fit the model {generator.name}: {field_name} differs",
                hint="use a classifier that was trained on the same pictures, classes and schedule",
                facts={"field": field_name},
            )


POINT = (2,)  # shape of a sample of a synthetic domain


def data_note(domain: ShippedDomain) -> DataNote:
    return DataNote(source=domain.package, licence=domain.licence, note=domain.note)


def carried_domain(manifest: Manifest) -> str | None:
    """The domain that ships, if the model was trained on it: units, shape and data have to be those of the domain."""
    if manifest.sample_kind == "point":
        units = manifest.normalisation == Normalisation()
        trained = units and manifest.domain in DOMAINS and manifest.sample_shape == POINT
    else:
        domain = SHIPPED.get(manifest.domain)
        trained = (
            domain is not None
            and manifest.sample_shape == domain.shape
            and manifest.data is not None
            and (manifest.data.source, manifest.data.note) == (domain.package, domain.note)
        )
    return manifest.domain if trained else None

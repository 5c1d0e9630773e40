"""The settings of a training run, for the command line (whose help they are), node.toml and Python.

A field without an option is set by `--set FIELD=VALUE`; what is not given comes from a preset (presets.toml). Settings,
data and initial weights decide the weights; threads, processes and the version of torch only how sums are rounded.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from ddib_fed.errors import SettingsInvalid, UsageError
from ddib_fed.files import first_problem, problem_text
from ddib_fed.models.units import Colours
from ddib_fed.names import check_domain, domain_from, nearest
from ddib_fed.networks.config import ClassifierConfig, SyntheticConfig, UNetConfig
from ddib_fed.record import Frozen

_TABLES: Final = tomllib.loads(Path(__file__).with_name("presets.toml").read_text("utf-8"))
PRESETS: Final = {name: table for name, table in _TABLES.items() if "size" in table}  # of pictures
SHIPPED: Final = (
    "satellite", "relief", "etopo", "satellite-64", "relief-64", "satellite-256", "relief-256", "brain-t1", "brain-t2",
    "brain-t1-volume", "brain-t2-volume",
)  # fmt: skip
"""As `ddib_fed.datasets.SHIPPED`, which needs numpy; a test holds the two together."""
SOFTEN_SIGMA = 0.05  # from docs/quality.md: the least noise that makes the maps' latents white by its measure
CALIBRATED_STEPS, CALIBRATED = 600, {"learning_rate": 1e-3, "ema": 0.99}  # of a run with a calibration
PRESET: Final[Any] = None  # the default of a field that the preset fills in
POINTS, PICTURES, MODELS = ("points",), ("pictures",), ("points", "pictures")
LABELLED, SEEN = ("pictures", "classifier"), ("pictures", "classifier", "autoencoder")
ANY = ("points", *SEEN)
_LEVELS, _REFERENCE = 256, 1024
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_LISTS = ("channel_mult", "attention_resolutions")


def says(default: Any, text: str, kinds: tuple[str, ...], **limits: Any) -> Any:
    """Return a field with an option, its help, and the kinds of run that have it."""
    extra: dict[str, Any] = {"kinds": list(kinds), "option": True}
    return Field(default, description=text, json_schema_extra=extra, **limits)


def by_set(default: Any, kinds: tuple[str, ...], **limits: Any) -> Any:
    return Field(default, json_schema_extra={"kinds": list(kinds), "option": False}, **limits)


def seconds(value: Any) -> Any:
    """Return seconds from text such as 90, 90s, 2m or 1h30m."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms]?)", value.strip().lower())
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != value.strip().lower() or not total > 0:
        raise ValueError(f"{value!r} is no time: write 90, 90s, 2m or 1h30m")
    return total


class TrainConfig(Frozen):
    """One training run; its kind follows from the data that are named.

    Another kind of run is a subclass, whose `opener` names the function that reads its data: called with the config,
    pictures in memory or None, the folder, and callbacks for remarks and for progress, it returns an `Opened`.
    """

    free: ClassVar[frozenset[str]] = frozenset(
        {
            "data", "images", "name", "init", "generator", "calibration", "command", "checkpoint_every", "samples",
            "steps", "time_s", "microbatch", "skip_bad", "soften_sigma", "device", "latent",
        }
    )  # fmt: skip
    """Fields that are not in the identity of a run: no weight depends on them, or `run` compares them itself."""
    opener: ClassVar[str] = "ddib_fed.training.run:open_run"
    """What reads the data of such a run, imported when it is trained."""
    Private: ClassVar[type[PrivateTrainConfig]]

    kind: str
    domain: str | None = says(
        None,
        "A synthetic domain, by name or by the paper's index 0 to 5, or a domain of pictures or volumes that packages "
        f"carry: {', '.join(SHIPPED)}.",
        (*MODELS, "autoencoder"),
    )
    data: Path | None = says(None, "Your points (N, D), .npy.", POINTS)
    images: Path | None = says(
        None,
        "Your pictures: PNG, JPEG, TIFF and .npy below this folder; or DICOM series, NIfTI volumes or GeoTIFFs.",
        SEEN,
    )
    name: Annotated[str, AfterValidator(check_domain)] | None = says(
        None, "Name of the domain in the bundle; by default it is named after its data.", ANY
    )
    steps: int | None = says(
        None, "Optimiser steps; default without --time: 2,000, or the preset's.", ANY, ge=1
    )
    time_s: Annotated[float, BeforeValidator(seconds)] | None = says(
        None,
        "Take as many steps as fit into this time, e.g. 90, 2m or 1h30m.",
        ANY,
        gt=0,
        allow_inf_nan=False,
    )
    seed: int = says(0, "All randomness follows from it.", ANY, ge=0, lt=2**63)
    batch: int = says(
        PRESET, "Points (2,048) or pictures (the preset's) a step, over all processes.", ANY, ge=1
    )
    learning_rate: float = by_set(PRESET, ANY, gt=0, allow_inf_nan=False)  # its peak
    width: int = by_set(160, POINTS, ge=1, le=4096)
    blocks: int = by_set(4, POINTS, ge=1, le=64)
    noise_schedule: Literal["linear", "cosine", "flow"] | None = by_set(None, MODELS)
    # Default: cosine, linear for the public network, or the initial weights'.
    diffusion_steps: int | None = by_set(None, POINTS, ge=2, le=10_000)
    # Integer steps of the schedule, as in the public code; default: continuous time, or 4000 for its network.
    threads: int = says(1, "Threads of torch; more may be slower.", ANY, ge=1)
    precision: Literal["float32", "bfloat16"] = by_set("float32", ANY)  # of matrix products
    dtype: Literal["float32", "float16"] = says(
        "float16", "Type of stored weights; default: float32 for points, float16 for pictures.", ANY
    )
    preset: str = says(
        PRESET,
        "Network and all that goes with its size. Default: tiny-32, or small-64 from --size 64 on; autoencoder-8 "
        "with --autoencoder.",
        SEEN,
    )
    autoencoder: bool = says(
        False,
        "Train an autoencoder, which makes pictures into latents and back; a model of latents needs one.",
        ("autoencoder",),
    )
    size: int | None = says(None, "Height and width for the network.", SEEN, ge=8, le=1024)
    channels: Literal[1, 3] | None = by_set(None, SEEN)  # by default what most pictures are
    # Values of its fields; for points public=True chooses the public code's network and objective.
    network: dict[str, Any] = by_set({}, ANY)
    fit: Literal["resize", "crop", "pad"] | None = says(
        None, "Fit to the size, undone on output; default: resize. pad suits scans.", SEEN
    )
    range: str = says(
        "type", "Raw values that become -1 and 1, as -1000:2000, p1:p99 or type (the default).", SEEN
    )
    intensity: str | None = says(
        None,
        "Rule by which DICOM, NIfTI and GeoTIFF become pictures, as of `ddib translate`; goes into the manifest; "
        "default: auto.",
        SEEN,
    )
    slices: Literal["axial", "coronal", "sagittal", "none"] | None = says(
        None,
        "Plane in which NIfTI volumes are cut; goes into the manifest; default: axial. none learns whole volumes, of "
        "NIfTI or DICOM, in blocks of --size voxels.",
        SEEN,
    )
    # Of volumes, mm between voxels along depth, height and width; default: the medians of all of them.
    spacing: tuple[float, float, float] | None = by_set(None, PICTURES)
    classes: Literal["folders", "prefix", "given"] | None = says(
        None, "Learn classes, from sub-folders or from the file name up to the first underscore.", LABELLED
    )
    skip_bad: bool = says(False, "Leave out files that cannot be read, and list them.", SEEN)
    held_out: float = by_set(0.1, SEEN, gt=0, lt=0.9)  # share never trained on
    flip: bool = says(False, "Mirror half of them, left to right.", SEEN)
    # Changes of size and shape, with scan of contrast, bias field and noise too: a model of few heads knows others.
    augment: Literal["none", "shape", "scan"] = by_set("none", ("pictures", "autoencoder"))
    crop: bool = by_set(False, SEEN)  # cut random windows, from pictures an eighth larger
    # What the network's channels are. opponent (lightness, blue against red, green against both) pairs hues with hues
    # where light and dark are exchanged. Both sides must use the same.
    colours: Colours = by_set("rgb", SEEN)
    microbatch: int = Field(PRESET, ge=1)  # samples at once; halved when memory runs out
    ema: float = by_set(PRESET, ANY, ge=0, lt=1)  # decay of the averaged weights
    checkpoint_every: int = by_set(PRESET, ANY, ge=1)  # steps between checkpoints and sample sheets
    device: Literal["cpu", "cuda", "auto"] = says(
        "cpu", "Device to compute on; auto is a GPU if there is one.", ANY
    )
    # Share of samples without their class, for classifier-free guidance.
    label_dropout: float = by_set(0.0, PICTURES, ge=0, lt=1)
    # Default: v, or as the initial weights. flow is flow matching, with its own schedule where none is named.
    predict: Literal["v", "eps", "flow"] | None = by_set(None, PICTURES)
    init: Path | None = says(
        None,
        "Start from the weights of this bundle, or of a model that ships by its name; RGB or grey.",
        PICTURES,
    )
    latent: Path | None = says(
        None,
        "Learn the latents of this autoencoder (ddib model train --autoencoder), or of that of a model that ships, by "
        "its name.",
        PICTURES,
    )
    calibration: Path | None = says(
        None,
        "Continue the --init model on its pictures mapped by this calibration (tone, colour-map); "
        f"{CALIBRATED_STEPS} steps without --steps.",
        PICTURES,
    )
    soften_sigma: float = says(
        SOFTEN_SIGMA,
        "Noise level from which they will be encoded; goes into the manifest.",
        PICTURES,
        ge=0,
        le=1,
    )

    # Of presets.toml and Python alone.
    decay: Literal["cosine", "none"] = "cosine"  # of the learning rate after the warm-up
    beta2: float = Field(0.99, gt=0, lt=1)
    warmup: int = Field(PRESET, ge=0)  # steps over which the rate grows; a fifth of all at most
    clip: float = Field(1.0, ge=0, allow_inf_nan=False)  # largest norm of the gradient; 0 for any
    samples: int = Field(16, ge=1)  # drawn for the figures and the sheet
    command: str = ""
    generator: Path | None = None  # the model that the classifier is to guide

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """Return the kind, and the preset's values where nothing is given; a field of another kind is refused."""
        given = {name: value for name, value in dict(given).items() if value is not None}
        shown = given.get("domain") in SHIPPED or "images" in given
        own = cls.model_fields["kind"]
        kind = "autoencoder" if given.get("autoencoder") else "pictures" if shown else "points"
        given.setdefault("kind", kind if own.is_required() else own.default)
        if given["kind"] == "autoencoder":
            given = {"preset": "autoencoder-8", **given, "autoencoder": True}
        elif given["kind"] in SEEN:
            large = int(given.get("size", 0)) >= 64 and "latent" not in given  # latents are smaller
            volumes = str(given.get("domain", "")).endswith("-volume") or given.get("slices") == "none"
            given.setdefault("preset", "volume-32" if volumes else "small-64" if large else "tiny-32")
        usual = cls.usual(given)
        for name, value in given.items():
            kinds = cls.kinds_of(name)
            foreign = kinds and given["kind"] in ANY and given["kind"] not in kinds
            if foreign and value != usual.get(name, cls.model_fields[name].get_default()):
                raise ValueError(f"{cls.called(name)} is for {kinds[0]}, and this run is on {given['kind']}")
        return {**usual, **given, "network": {**usual.get("network", {}), **given.get("network", {})}}

    @classmethod
    def usual(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults of a run with these fields."""
        if given["kind"] == "points":
            defaults = dict(_TABLES["public" if given.get("network", {}).get("public") else "points"])
            defaults |= {"preset": "", "microbatch": int(given.get("batch", defaults["batch"]))}
        else:
            preset = PRESETS.get(given["preset"])
            if preset is None:
                raise ValueError(f"there is no preset {given['preset']}; there are {', '.join(PRESETS)}")
            if ("latent_channels" in preset["network"]) != (given["kind"] == "autoencoder"):
                whose = "a denoiser" if given["kind"] == "autoencoder" else "an autoencoder"
                raise ValueError(f"the preset {given['preset']} is of {whose}")
            defaults = {name: value for name, value in preset.items() if name not in {"size", "purpose"}}
            defaults |= CALIBRATED if given.get("calibration") is not None else {}
            defaults["microbatch"] = min(defaults["microbatch"], int(given.get("batch", defaults["batch"])))
            # Spelt out, so that a preset that changes changes no run that has begun.
            network = cls.usual_network(given, preset["network"])
            defaults["network"] = network if given.get("init") is None else {}
        defaults.pop("steps", None)
        return defaults

    @classmethod
    def usual_network(cls, given: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields of a picture network as the preset has them, but for what the run rules out."""
        if given["kind"] == "classifier":
            kept = {name: value for name, value in network.items() if name in ClassifierConfig.model_fields}
            heads = network.get("num_head_channels", -1) != -1
            return {**kept, "pool": "attention" if heads else "adaptive"}
        plain = given.get("predict", "v") == "v"
        return {name: value for name, value in network.items() if plain or name != "spectral"}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for wrong, why in self.faults():
            if wrong:
                raise ValueError(why)
        return self

    def faults(self) -> Iterable[tuple[bool, str]]:
        """Yield each forbidden combination: whether it is there, and its message."""
        named = sum(part is not None for part in (self.domain, self.data, self.images))
        few = self.kind == "points" and not named
        yield few or named > 1, "give one of: domain, data (points), images (a folder of pictures)"
        yield self.steps is not None and self.time_s is not None, "give either steps or time_s"
        if self.kind == "points":
            yield from self._network_faults()
            return
        yield self.kind not in SEEN, f"there is no kind of run {self.kind}"
        yield self.kind == "classifier" and self.classes is None, "a classifier needs classes"
        yield bool(self.label_dropout) and self.classes is None, "label_dropout needs classes"
        yield (
            self.calibration is not None and self.init is None,
            "calibration needs init, the model that was trained on the pictures as they are",
        )
        shipped = ("channels", "fit", "skip_bad", "held_out") if self.domain is not None else ()
        for name in ("crop", "range", "intensity", "slices", *shipped):
            idle = self.images is None and self._says(name)
            yield idle, f"{self.called(name)} is for a folder of pictures"

    def _says(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def _network_faults(self) -> Iterable[tuple[bool, str]]:
        """Yield the faults of a network of points."""
        fields = {name: value for name, value in self.network.items() if name != "public"}
        if not self.public:
            foreign = ", ".join(fields)
            yield bool(fields), f"{foreign}: of the networks of pictures, or goes with network=public"
            return
        resized = self._says("width") or self._says("blocks")
        yield resized, "the public network has num_channels and num_res_blocks, no width and blocks"
        try:
            SyntheticConfig.model_validate(fields)
        except ValidationError as error:
            yield True, problem_text(error)

    @property
    def public(self) -> bool:
        """Whether points are learned by the public code's network and objective."""
        return bool(self.network.get("public"))

    @property
    def levels(self) -> int:
        """Distinct noise levels in one batch of points; divides it."""
        steps = self.diffusion_steps if self.public else None
        return _divisor(self.batch, steps or _LEVELS)

    @property
    def reference(self) -> int:
        """Points that a target's posterior runs over; 0 for none."""
        return 0 if self.public else _divisor(self.batch, _REFERENCE)

    @property
    def told_classes(self) -> Literal["folders", "prefix"] | None:
        """What tells the classes of a folder's pictures."""
        return None if self.classes == "given" else self.classes

    @property
    def usual_size(self) -> int:
        return self.size or int(PRESETS[self.preset]["size"])

    @property
    def label(self) -> str:
        """What the bundle of a run on points calls its domain."""
        return self.name or self.domain or domain_from(Path(str(self.data)).stem) or "points"

    def usual_steps(self) -> int:
        """Return steps of a run that is given neither steps nor a time."""
        if self.public:
            raise SettingsInvalid(
                "the public code trains its network until it is stopped: there is no usual number of steps",
                hint="say --steps 100000, or --time 2h",
            )
        return CALIBRATED_STEPS if self.calibration else int(_TABLES[self.preset or "points"]["steps"])

    seconds: ClassVar = staticmethod(seconds)

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Return the names of the presets of pictures."""
        return tuple(PRESETS)

    @staticmethod
    def option(name: str) -> str:
        """Return the option of a field."""
        return f"--{name.removesuffix('_s').replace('_', '-')}"

    @classmethod
    def called(cls, name: str) -> str:
        """Return how a field is asked for on the command line."""
        if name in cls.options_of(*ANY):
            return cls.option(name)
        return name if name not in cls.model_fields else f"--set {name}"

    @classmethod
    def _extra(cls, name: str) -> Mapping[str, Any]:
        extra = cls.model_fields[name].json_schema_extra if name in cls.model_fields else None
        return extra if isinstance(extra, dict) else {}

    @classmethod
    def kinds_of(cls, name: str) -> tuple[str, ...]:
        """Return the kinds of run that have a field."""
        return tuple(cls._extra(name).get("kinds", ()))

    @classmethod
    def fields_of(cls, *kinds: str) -> list[str]:
        """Return the fields of any of these kinds of run, in the order of the help."""
        return [name for name in cls.model_fields if set(kinds) & set(cls.kinds_of(name))]

    @classmethod
    def options_of(cls, *kinds: str) -> list[str]:
        """Return those of them that have an option; the others are given by --set."""
        return [name for name in cls.fields_of(*kinds) if cls._extra(name)["option"]]

    @classmethod
    def checked(cls, fields: Mapping[str, Any], hint: str, sets: Sequence[str] = ()) -> Self:
        """Return the config of these fields and of the texts of --set; raise UsageError for an unknown one or value."""
        try:
            return cls.model_validate(cls._with_sets(fields, sets))
        except ValidationError as error:
            where, message = first_problem(error)
            where = where.partition(".")[0]
            raise UsageError(f"{cls.called(where)}: {message}" if where else message, hint=hint) from error

    @classmethod
    def _with_sets(cls, fields: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
        """Return fields with those of texts such as ema=0.99 (of the run), channel_mult=1,2,3 (of its network)."""
        whole, network = dict(fields), dict(fields.get("network", {}))
        own = cls.fields_of(*ANY)
        for text in sets:
            name, mark, value = (part.strip() for part in text.partition("="))
            if not mark or not name:
                raise UsageError(
                    f"--set {text!r} is no FIELD=VALUE", hint="write a field so: --set ema=0.999"
                )
            if (name, value) == ("network", "public"):
                network["public"] = True
            elif name in own and name != "network":
                whole[name] = value if cls._extra(name)["option"] else _read(value)
            else:
                _require_of_a_network(name, own)
                network[name] = _read(f"[{value}]" if name in _LISTS or "," in value else value)
        return {**whole, "network": network} if network else whole

    def identity(self, data: str) -> str:
        """Return a digest of all that the weights depend on but the number of steps; equal runs can be resumed."""
        settings = self.model_dump_json(exclude=set(self.free))
        return hashlib.sha256(f"{settings} {data}".encode()).hexdigest()


class PrivateTrainConfig(TrainConfig):
    """A run on points or pictures with differential privacy of each training sample."""

    opener = "ddib_fed.training.private:open_private"

    epsilon: float = says(
        ...,
        "What the whole run may spend at most. It bounds what the weights tell of one training sample, and hides "
        "no picture that is translated (SECURITY.md).",
        MODELS,
        gt=0,
        le=1000,
    )

    @classmethod
    def usual(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        defaults = super().usual(given)
        # The public code's dropout is of a whole batch, and a spectrum is measured of the pictures.
        network = defaults.get("network", {})
        defaults["network"] = {name: network[name] for name in network if name not in {"dropout", "spectral"}}
        return defaults

    @property
    def reference(self) -> int:
        return 0  # the target of a point may depend on no other point

    def faults(self) -> Iterable[tuple[bool, str]]:
        yield from super().faults()
        endless = self.kind == "points" and self.domain is not None
        halved = self.precision != "float32"
        wrong = {
            "a classifier": self.kind == "classifier",
            "time_s: the noise follows from the number of steps, so say steps": self.time_s is not None,
            "precision bfloat16: gradients of single samples are computed in float32": halved,
            "domain: a synthetic domain has no training points to protect, so give data": endless,
            "spectral: a spectrum is measured of the pictures": bool(self.network.get("spectral")),
            "dropout: its masks are drawn for the whole batch": bool(self.network.get("dropout")),
            "augment: its changes follow from the place in the batch, and no key": self.augment != "none",
        }
        for what, is_there in wrong.items():
            yield is_there, f"differential privacy does not go with {what}"


TrainConfig.Private = PrivateTrainConfig


class RunPlan(Frozen):
    """How long a run is: `total` steps, decided after `step` steps, when the share `share` of the run was behind it."""

    total: int = Field(ge=1)
    step: int = 0
    share: float = 0.0

    def behind(self, step: int) -> float:
        """Return the share of the run that is behind it when `step` steps are done."""
        return self.share + (1.0 - self.share) * (step - self.step) / (self.total - self.step)

    def renewed(self, step: int, total: int) -> RunPlan:
        """Return the plan that continues this one with another number of steps."""
        return RunPlan(total=total, step=step, share=self.behind(step))


def learning_rate(config: TrainConfig, plan: RunPlan, step: int) -> float:
    """Return the rate of step `step` (from 0): linear warm-up, then constant or half a cosine down to 0."""
    warm = min(1.0, max((step + 1) / max(1, config.warmup), 5.0 * plan.behind(step + 1)))
    fall = 1.0 if config.decay == "none" else 0.5 * (1 + math.cos(math.pi * plan.behind(step)))
    return config.learning_rate * warm * fall


def _require_of_a_network(name: str, own: Sequence[str]) -> None:
    known = {field for kind in (UNetConfig, ClassifierConfig, SyntheticConfig) for field in kind.model_fields}
    known |= PRESETS["autoencoder-8"]["network"].keys()
    if name not in known:
        close = nearest(name, {*known, *own})
        raise UsageError(
            f"--set {name}: neither a run nor its network has such a field",
            hint=f"did you mean {close}?" if close else f"fields of a run are {', '.join(own)}",
        )


def _read(text: str) -> Any:
    """Return a value as TOML has it; else the text itself, e.g. of a choice."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _divisor(batch: int, most: int) -> int:
    return next(k for k in range(min(most, batch), 0, -1) if batch % k == 0)

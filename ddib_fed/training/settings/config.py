"""The settings of a training run on points, on pictures, or of a classifier; the command line and node.toml share them.

The weights are a function of the settled settings, the data, the initial weights, the thread count, the number of
processes and the version of torch; the last three only change how sums are rounded. The descriptions are the help of
`ddib model train`. Changing the order of the fields changes `identity`, and with it which runs can be resumed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.units.normalisation import Colours
from ddib_fed.names import domain_from
from ddib_fed.networks.configs import ClassifierConfig
from ddib_fed.training.settings.distil_config import DistilConfig
from ddib_fed.training.settings.fields import (
    BATCH,
    EMA,
    NETWORK,
    RATE,
    Device,
    Domain,
    Name,
    Plan,
    Precision,
    Seed,
    Steps,
    StoredDtype,
    Threads,
    Time,
    Timed,
    says,
)
from ddib_fed.training.settings.presets import PRESETS, Preset
from ddib_fed.training.settings.private import DP_FIELDS, PrivateTrainConfig

SOFTEN_SIGMA = 0.05
"""From docs/latents.md: the least noise that makes the maps' latents white by its measure."""
CALIBRATED_STEPS, CALIBRATED_RATE, CALIBRATED_EMA = 600, 1e-3, 0.99
"""Steps, peak of the learning rate and decay of the averages of a run with a calibration (decision 0058)."""
POINT_STEPS = 2_000
"""Steps of a run on points that is given neither steps nor time: about 100 s of one core for a 2-D domain."""


class PointTrainConfig(PrivateTrainConfig):
    """One training run on points (N, D)."""

    kind = "points"
    free = frozenset(
        {"data", "name", "command", "checkpoint_every", "samples", "dtype", "time_s", "device", "timed_s"}
    )
    later = DP_FIELDS | {
        "network", "diffusion_steps", "num_channels", "num_res_blocks", "dropout", "decay", "beta2", "planned",
    }  # fmt: skip

    domain: Domain = None
    data: Annotated[Path | None, says("Your points (N, D), .npy.")] = None
    name: Name = None
    seed: Seed = 0
    steps: Steps = None
    time_s: Time = None
    batch: Annotated[int, says(BATCH, ge=1)] = 2048
    levels: Annotated[int, says("Distinct noise levels in one batch; must divide it.", ge=1)] = 256
    reference: Annotated[
        int,
        says("Points that a target's posterior runs over (decision 0016).", ge=0),
    ] = 1024
    learning_rate: Annotated[float, says(RATE, gt=0)] = 2e-3
    warmup: Annotated[int, says("Steps over which the learning rate grows.", ge=0)] = 100
    ema: Annotated[float, says(EMA, ge=0, lt=1)] = 0.999
    clip: Annotated[float | None, says("Largest norm of the gradient; None for any.", gt=0)] = 1.0
    precision: Precision = "float32"
    threads: Threads = 1
    width: Annotated[int, says("Hidden units.", ge=1, le=4096)] = 160
    blocks: Annotated[int, says("Residual blocks.", ge=1, le=64)] = 4
    schedule: Annotated[
        Literal["linear", "cosine"],
        says("Noise schedule; default: cosine, or linear for --network public."),
    ] = "cosine"
    checkpoint_every: Annotated[int, says("Steps between checkpoints and sample sheets.", ge=1)] = 250
    samples: Annotated[int, says("Points drawn from the finished model, for its figures.", ge=1)] = 10_000
    dtype: StoredDtype = "float32"
    command: Annotated[str, says("The command to be recorded in the manifest.")] = ""

    network: Annotated[Literal["mlp", "public"], says(NETWORK)] = "mlp"
    diffusion_steps: Annotated[
        int | None,
        says(
            "Integer steps of the schedule, as in the public code; default: continuous time, or 4000 for "
            "--network public.",
            ge=2,
            le=10_000,
        ),
    ] = None
    num_channels: Annotated[int, says("Hidden units: public network.", ge=32, le=4096, multiple_of=32)] = 256
    num_res_blocks: Annotated[int, says("Residual blocks of the public network, each way.", ge=1, le=64)] = 3
    dropout: Annotated[float, says("Of the public network while it is trained.", ge=0, lt=1)] = 0.0
    decay: Annotated[Literal["cosine", "none"], says("Of the learning rate after the warm-up.")] = "cosine"
    beta2: Annotated[float, says("Decay of AdamW's second moments.", gt=0, lt=1)] = 0.99
    device: Device = "cpu"
    timed_s: Timed = None
    planned: Plan = ()

    weight_decay: ClassVar[float] = 0.0
    soften_sigma: ClassVar[float] = 0.0
    microbatch: ClassVar[None] = None
    validate_every: ClassVar[int] = 100
    """Steps between measurements of the held-out loss."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.domain is None) == (self.data is None):
            raise ValueError("give one of: domain, data (points), images (a folder of pictures)")
        if self.steps is not None and self.time_s is not None:
            raise ValueError("give either steps or time_s")
        if self.batch % self.levels:
            raise ValueError(f"levels ({self.levels}) must divide batch ({self.batch})")
        if self.reference and self.batch % self.reference:
            raise ValueError(f"reference ({self.reference}) must divide batch ({self.batch})")
        if self.network == "public" and (self.diffusion_steps is None or self.reference):
            raise ValueError("the public network learns the noise of a point at one of its diffusion steps")
        return self

    def never_private(self) -> dict[str, bool]:
        return {
            "domain: a synthetic domain has no training points to protect, so give data": self.domain
            is not None,
            "reference: the target of a point would depend on the others": self.reference > 0,
            "dropout: its masks are drawn for the whole batch": self.dropout > 0,
        }

    @property
    def label(self) -> str:
        """What the bundle calls its domain."""
        if self.name is not None:
            return self.name
        return self.domain if self.domain is not None else domain_from(Path(str(self.data)).stem) or "points"

    def settled(self, steps: int | None = None, **found: Any) -> Self:
        """The same run with its number of steps settled; points have no microbatch to be found."""
        del found
        if self.network == "public" and steps is None and self.steps is None:
            raise SettingsInvalid(
                "the public code trains its network until it is stopped: there is no usual number of steps",
                hint="say --steps 100000, or --time 2h",
            )
        return self.model_copy(update={"steps": steps or self.steps or POINT_STEPS, "time_s": None})


class PictureTrainConfig(PrivateTrainConfig):
    """One training run on pictures; what is None takes the preset's value, which `settled` fills in."""

    kind = "pictures"
    free = frozenset(
        {
            "images", "name", "init", "command", "checkpoint_every", "samples", "dtype", "time_s",
            "microbatch", "skip_bad", "soften_sigma", "device", "generator", "calibration", "timed_s",
        }
    )  # fmt: skip
    later = DP_FIELDS | {"calibration_digest", "planned", "intensity", "slices"}

    domain: Domain = None
    images: Annotated[
        Path | None,
        says(
            "Your pictures: PNG, JPEG, TIFF and .npy below this folder; or DICOM series, NIfTI volumes or GeoTIFFs."
        ),
    ] = None
    name: Name = None
    preset: Annotated[
        str,
        says(
            "Network and all that goes with its size; `ddib model presets` lists them. Default: tiny-32, or small-64 "
            "from --size 64 on."
        ),
    ] = "tiny-32"
    size: Annotated[int | None, says("Height and width for the network.", ge=8, le=1024)] = None
    channels: Annotated[Literal[1, 3] | None, says("Grey or RGB; by default what most pictures are.")] = None
    network: Annotated[dict[str, Any], says(NETWORK)] = Field(default_factory=dict)
    seed: Seed = 0
    steps: Steps = None
    time_s: Time = None
    batch: Annotated[int | None, says(BATCH, ge=1)] = None
    microbatch: Annotated[int | None, says("How many at once; halved when memory runs out.", ge=1)] = None
    learning_rate: Annotated[float | None, says(RATE, gt=0, allow_inf_nan=False)] = None
    warmup: Annotated[int | None, says("Steps over which the rate grows; a fifth of all at most.", ge=0)] = (
        None
    )
    weight_decay: Annotated[float, says("Of AdamW.", ge=0)] = 0.0
    ema: Annotated[float | None, says(EMA, ge=0, lt=1)] = None
    clip: Annotated[float, says("Largest norm of the gradient.", gt=0, allow_inf_nan=False)] = 1.0
    parameterisation: Annotated[
        Literal["v", "eps"] | None,
        says("What the network predicts; default: v, or as the initial weights."),
    ] = None
    schedule: Annotated[str | None, says("Noise schedule; default: cosine, or the initial weights'.")] = None
    learn_sigma: Annotated[bool, says("Learn variances too, by the hybrid loss.")] = False
    sampler: Annotated[
        Literal["grid", "uniform", "loss-second-moment"],
        says("How noise levels are drawn; default: grid, as the solvers place their steps."),
    ] = "grid"
    precision: Precision = "float32"
    threads: Threads = 1
    device: Device = "cpu"
    fit: Annotated[
        Literal["resize", "crop", "pad"] | None,
        says("Fit to the size, undone on output; default: resize. pad suits scans."),
    ] = None
    range: Annotated[
        str, says("Raw values that become -1 and 1, as -1000:2000, p1:p99 or type (the default).")
    ] = "type"
    intensity: Annotated[
        str | None,
        says(
            "Rule by which DICOM, NIfTI and GeoTIFF become pictures, as of `ddib translate`; goes into the manifest; "
            "default: auto."
        ),
    ] = None
    slices: Annotated[
        Literal["axial", "coronal", "sagittal"] | None,
        says("Plane in which NIfTI volumes are cut; goes into the manifest; default: axial."),
    ] = None
    flip: Annotated[bool, says("Mirror half of them, left to right.")] = False
    crop: Annotated[bool, says("Cut random windows, from pictures an eighth larger.")] = False
    dequantise: Annotated[bool, says("Add no noise within a quantisation step.")] = True
    normalise: Annotated[
        Literal["channel", "scalar", "none"],
        says("Zero mean and unit deviation by channel, by one scalar, or neither."),
    ] = "channel"
    colours: Annotated[
        Colours,
        says(
            "What the network's channels are; default: rgb. opponent (lightness, blue against red, green against "
            "both) pairs hues with hues where light and dark are exchanged. Both sides must use the same."
        ),
    ] = "rgb"
    classes: Annotated[
        Literal["folders", "prefix", "given"] | None,
        says("Learn classes, from sub-folders or from the file name up to the first underscore."),
    ] = None
    label_dropout: Annotated[
        float,
        says("Share of samples without their class, for classifier-free guidance, e.g. 0.1.", ge=0, lt=1),
    ] = 0.0
    skip_bad: Annotated[bool, says("Leave out files that cannot be read, and list them.")] = False
    held_out: Annotated[float, says("Share never trained on; default: 0.1.", gt=0, lt=0.9)] = 0.1
    init: Annotated[Path | None, says("Start from the weights of this bundle, RGB or grey.")] = None
    init_digest: Annotated[str, says("Digest of that bundle; filled in.")] = ""
    soften_sigma: Annotated[
        float,
        says(
            f"Noise level from which they will be encoded; goes into the manifest; default: {SOFTEN_SIGMA:g}.",
            ge=0,
            le=1,
        ),
    ] = SOFTEN_SIGMA
    dtype: StoredDtype = "float16"
    checkpoint_every: Annotated[int | None, says("Steps between checkpoints and sample sheets.", ge=1)] = None
    samples: Annotated[int, says("Pictures on the sample sheet.", ge=1)] = 16
    command: Annotated[str, says("The command to be recorded in the manifest.")] = ""
    calibration: Annotated[
        Path | None,
        says(
            "Continue the --init model on its pictures mapped by this calibration (tone, colour-map); "
            f"{CALIBRATED_STEPS} steps without --steps."
        ),
    ] = None
    calibration_digest: Annotated[str, says("Digest of its map; filled in.")] = ""
    timed_s: Timed = None
    planned: Plan = ()

    decay: ClassVar[str] = "cosine"
    beta2: ClassVar[float] = 0.99

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.preset not in PRESETS:
            raise ValueError(f"there is no preset {self.preset}; there are {', '.join(PRESETS)}")
        if self.domain is not None and self.images is not None:
            raise ValueError("give either domain or images")
        if self.steps is not None and self.time_s is not None:
            raise ValueError("give either steps or time_s")
        if self.label_dropout and self.classes is None:
            raise ValueError("label_dropout needs classes")
        if self.calibration is not None and self.init is None:
            raise ValueError("calibration needs init, the model that was trained on the pictures as they are")
        if self.calibration is not None and self.learn_sigma:
            raise ValueError("learn_sigma takes the likelihood of grey steps, which a calibration moves")
        if self.learn_sigma and self.colours != "rgb":
            raise ValueError("learn_sigma needs the colours rgb: it takes the likelihood of their steps")
        of_folders = (self.crop, self.range != "type", self.intensity is not None, self.slices is not None)
        if any(of_folders) and self.images is None:
            raise ValueError("crop, range, intensity and slices are for folders of pictures")
        return self

    def never_private(self) -> dict[str, bool]:
        return {
            "sampler loss-second-moment: it learns from the losses": self.sampler == "loss-second-moment",
            "learn_sigma": self.learn_sigma,
            "spectral: a spectrum is measured of the pictures": bool(self.network.get("spectral")),
            "dropout: its masks are drawn for the whole batch": bool(self.network.get("dropout")),
        }

    @property
    def defaults(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def validate_every(self) -> int:
        return self.checkpoint_every or 1

    def preset_network(self) -> dict[str, Any]:
        """Fields of the network as the preset has them, but for what parameterisation and privacy rule out."""
        network = dict(self.defaults.network)
        if self.parameterisation == "eps" or self.dp_epsilon is not None:
            network.pop("spectral", None)
        return network

    def settled(self, steps: int | None = None, **found: Any) -> Self:
        """The same run with the preset's values in place of None, and `found` (microbatch) in place of what it has."""
        preset = self.defaults
        values: dict[str, Any] = {
            "batch": self.batch or preset.batch,
            "learning_rate": self.learning_rate or preset.learning_rate,
            "warmup": preset.warmup if self.warmup is None else self.warmup,
            "ema": preset.ema if self.ema is None else self.ema,
            "checkpoint_every": self.checkpoint_every or preset.checkpoint_every,
        }
        if self.init is None:
            # Spelt out, so that a preset that changes from release to release changes no run that has begun.
            values["network"] = {**self.preset_network(), **self.network}
        if self.calibration is not None:
            values |= {
                "learning_rate": self.learning_rate or CALIBRATED_RATE,
                "ema": CALIBRATED_EMA if self.ema is None else self.ema,
            }
            if self.steps is None and self.time_s is None:
                values["steps"] = CALIBRATED_STEPS
        values["microbatch"] = min(self.microbatch or preset.microbatch, int(values["batch"]))
        if steps is not None:
            values |= {"steps": steps, "time_s": None}
        return type(self).model_validate(self.model_dump() | values | found)


class ClassifierTrainConfig(PictureTrainConfig):
    """One training run of a classifier of noisy pictures, for guidance; `classes` must be given."""

    generator: Annotated[
        Path | None,
        says("The model to be guided: levels, units and size of the pictures are its own."),
    ] = None
    generator_digest: Annotated[str, says("Digest of that bundle; filled in.")] = ""

    @model_validator(mode="after")
    def _is_a_classifier(self) -> Self:
        if self.classes is None:
            raise ValueError("a classifier needs classes")
        if self.label_dropout or self.learn_sigma or self.init is not None:
            raise ValueError("label_dropout, learn_sigma and init are not for classifiers")
        return self

    def never_private(self) -> dict[str, bool]:
        return {"a classifier": True}

    def preset_network(self) -> dict[str, Any]:
        """Those fields of the preset that a classifier has, with attention as the pool where heads have a width."""
        network = {
            name: value
            for name, value in self.defaults.network.items()
            if name in ClassifierConfig.model_fields
        }
        return {**network, "pool": "attention" if network.get("num_head_channels", -1) != -1 else "adaptive"}


AnyConfig = PointTrainConfig | PictureTrainConfig | DistilConfig


def learning_rate(config: AnyConfig, step: int) -> float:
    """The rate of step `step` (from 0) of a settled run: linear warm-up, then constant or half a cosine down to 0."""
    warm = min(1.0, max((step + 1) / max(1, config.warmup or 0), 5.0 * config.share(step + 1)))
    rate = float(config.learning_rate or 0.0) * warm
    if config.decay == "none":
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * config.share(step)))

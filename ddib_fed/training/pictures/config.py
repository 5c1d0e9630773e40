"""What a run on pictures is told, checked before anything is computed.

The rule: the weights are a function of the settled `PictureTrainConfig`, the pictures, the starting weights, the
thread count, the number of processes and the version of torch; the last four only change how sums are rounded.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ddib_fed.models.normalisation import Colours
from ddib_fed.names import check_domain
from ddib_fed.networks.configs import ClassifierConfig
from ddib_fed.training.pictures.presets import PRESETS, Preset

SOFTEN_SIGMA = 0.05
"""From docs/latents.md: the least noise that makes the maps' latents white by its measure."""
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class PictureTrainConfig(BaseModel):
    """One training run on pictures.

    A setting that is None takes the preset's value; `settled` fills them all in.

    Attributes:
        domain: A domain of `ddib_fed.datasets.shipped`; or None.
        images: A folder of pictures; or None. With neither, `train_pictures` is given the pictures themselves.
        name: What the bundle calls its domain; without it the domain's, the folder's or the source's name.
        preset: One of `presets.PRESETS`: network and everything that depends on its size.
        size: Height and width of the network's pictures; for arrays it follows from them.
        channels: 1 or 3 for a folder; None for what most of its pictures have.
        network: Fields of `UNetConfig` that replace the preset's, e.g. {"model_channels": 48, "patch": 2}.
        seed: Everything random follows from it.
        steps: Optimiser steps; None to take `time_s`, or else the preset's.
        time_s: Seconds of wall time to fit into: the rate is measured before the first step, and becomes steps.
        batch: Pictures a step, over all processes.
        microbatch: Pictures that go through the network at once; halved when memory runs out.
        learning_rate: Its peak, after `warmup` steps; then a half cosine to zero.
        warmup: Steps over which the rate grows; at most a fifth of all.
        weight_decay: Of AdamW.
        ema: Decay of the averaged weights a step.
        clip: Largest norm of the gradient.
        parameterisation: What the network predicts; None for v, or what the starting weights predict.
        schedule: Noise schedule; None for the cosine, or that of the starting weights.
        learn_sigma: The network gives variances too, learned by the hybrid loss.
        sampler: How noise levels are drawn, see `levels`.
        precision: Of matrix products and convolutions while training. bfloat16 pays where the machine has it.
        threads: Threads of torch on the CPU.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        fit: How a picture of another size is fitted: "resize", "crop" or "pad".
        range: Raw values that become -1 and 1: "type", "LOW:HIGH" or "p1:p99"; folders only.
        flip: Mirror half of the pictures, left to right.
        crop: Cut a random window out of pictures that are kept an eighth larger; folders only.
        dequantise: Add uniform noise within one quantisation step of the pictures.
        normalise: Bring the pictures to zero mean and unit deviation: "channel" by channel, by one "scalar", or "none".
        colours: What the channels of colour pictures become: "rgb", or "opponent", lightness and two chromaticities,
            each with its own mean and deviation; both sides of a bridge must use the same.
        classes: Condition on classes: those of "folders", of the file names' "prefix", or "given" with the arrays.
        label_dropout: Share of samples whose class is withheld, for classifier-free guidance.
        skip_bad: Leave out files that cannot be read instead of refusing the folder.
        held_out: Share of a folder that is never trained on.
        init: A bundle whose weights are the start.
        init_digest: Digest of that bundle; filled in.
        soften_sigma: Noise level at which encoding starts; goes into the manifest.
        dtype: How the finished bundle stores its weights.
        checkpoint_every: Steps between checkpoints, sample sheets and validations.
        samples: Pictures on the sample sheet.
        command: The command to be recorded in the manifest.
        recipe: Digest of the recipe that this run follows, or empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str | None = None
    images: Path | None = None
    name: Annotated[str, AfterValidator(check_domain)] | None = None
    preset: str = "tiny-32"
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    channels: Literal[1, 3] | None = None
    network: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Count | None = None
    time_s: Positive | None = None
    batch: Count | None = None
    microbatch: Count | None = None
    learning_rate: Positive | None = None
    warmup: Annotated[int, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip: Positive = 1.0
    parameterisation: Literal["v", "eps"] | None = None
    schedule: str | None = None
    learn_sigma: bool = False
    sampler: Literal["grid", "uniform", "loss-second-moment"] = "grid"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Count = 1
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    fit: Literal["resize", "crop", "pad"] | None = None
    range: str = "type"
    flip: bool = False
    crop: bool = False
    dequantise: bool = True
    normalise: Literal["channel", "scalar", "none"] = "channel"
    colours: Colours = "rgb"
    classes: Literal["folders", "prefix", "given"] | None = None
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    skip_bad: bool = False
    held_out: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    init: Path | None = None
    init_digest: str = ""
    soften_sigma: Share = SOFTEN_SIGMA
    dtype: Literal["float32", "float16"] = "float16"
    checkpoint_every: Count | None = None
    samples: Count = 16
    command: str = ""
    recipe: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> PictureTrainConfig:
        if self.preset not in PRESETS:
            raise ValueError(f"there is no preset {self.preset}; there are {', '.join(PRESETS)}")
        if self.domain is not None and self.images is not None:
            raise ValueError("give either domain or images")
        if self.steps is not None and self.time_s is not None:
            raise ValueError("give either steps or time_s")
        if self.label_dropout and self.classes is None:
            raise ValueError("label_dropout needs classes")
        if self.learn_sigma and self.colours != "rgb":
            raise ValueError(
                "learn_sigma needs the colours rgb, of whose quantisation it takes the likelihood"
            )
        if (self.crop or self.range != "type") and self.images is None:
            raise ValueError("crop and range are for folders of pictures")
        return self

    @property
    def defaults(self) -> Preset:
        """What the preset says."""
        return PRESETS[self.preset]

    def preset_network(self) -> dict[str, Any]:
        """Fields of the network as the preset has them, but for what the parameterisation rules out."""
        network = dict(self.defaults.network)
        if self.parameterisation == "eps":
            network.pop("spectral", None)
        return network

    def settled(self, **found: Any) -> Self:
        """The same run with the preset's values in place of None, and `found` (e.g. steps) in place of what it says."""
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
        values["microbatch"] = min(self.microbatch or preset.microbatch, int(values["batch"]))
        if "steps" in found:
            values["time_s"] = None
        return type(self).model_validate(self.model_dump() | values | found)

    def identity(self) -> str:
        """Digest of what the weights depend on; two runs with the same one can continue each other."""
        free = {
            "images",
            "name",
            "init",
            "command",
            "recipe",
            "checkpoint_every",
            "samples",
            "dtype",
            "time_s",
            "microbatch",
            "skip_bad",
            "soften_sigma",
            "device",
            "generator",
        }
        return hashlib.sha256(self.model_dump_json(exclude=free).encode()).hexdigest()


class ClassifierTrainConfig(PictureTrainConfig):
    """One training run of a classifier of noisy pictures, for guidance; `classes` must be given.

    Attributes:
        generator: The bundle that is to be guided: schedule, time, normalisation and classes are taken from it; or
            None, and they are as in a run of its own.
        generator_digest: Digest of that bundle; filled in.
    """

    generator: Path | None = None
    generator_digest: str = ""

    @model_validator(mode="after")
    def _is_a_classifier(self) -> ClassifierTrainConfig:
        if self.classes is None:
            raise ValueError("a classifier needs classes")
        if self.label_dropout or self.learn_sigma or self.init is not None:
            raise ValueError("label_dropout, learn_sigma and init are not for classifiers")
        return self

    def preset_network(self) -> dict[str, Any]:
        """Those fields of the preset that a classifier has, with attention as the pool where heads have a width."""
        network = {
            name: value
            for name, value in self.defaults.network.items()
            if name in ClassifierConfig.model_fields
        }
        return {**network, "pool": "attention" if network.get("num_head_channels", -1) != -1 else "adaptive"}


def learning_rate(config: PictureTrainConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of a settled run: linear warm-up, then half a cosine down to zero at `steps`."""
    warm = min(1.0, (step + 1) / max(1.0, min(config.warmup or 0, steps / 5)))
    return float(config.learning_rate or 0.0) * warm * 0.5 * (1 + math.cos(math.pi * step / steps))

"""What a training run is told, checked before anything is computed.

The rule: the weights are a function of `TrainConfig` (with its number of steps settled), the thread count and the
version of torch. Paths, times and the machine's speed only decide which config is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.names import check_domain, domain_from

SCHEDULE = "cosine"
STEPS = 2_000
"""Steps of a run that is told neither steps nor time: about 100 s of one core for a 2-D domain."""

PUBLIC: Mapping[str, Any] = MappingProxyType(
    {
        "network": "public",
        "schedule": "linear",
        "diffusion_steps": 4000,
        "batch": 20_000,
        "reference": 0,
        "learning_rate": 1e-4,
        "decay": "none",
        "warmup": 0,
        "beta2": 0.999,
        "clip": None,
        "ema": 0.9999,
        "dropout": 0.2,
    }
)
"""What the public code's README trains its 2-D models with, and that code's defaults where it says nothing."""
# Fields of `TrainConfig` that the first release did not have.
LATER_FIELDS = frozenset(
    {"network", "diffusion_steps", "num_channels", "num_res_blocks", "dropout", "decay", "beta2"}
)

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class TrainConfig(BaseModel):
    """One training run.

    Attributes:
        domain: Name of a synthetic domain; or None, and `data` is given.
        data: A .npy file of points (N, D); or None, and `domain` is given.
        name: What the bundle calls its domain; without it the domain's name, or the file's stem.
        seed: Everything random follows from it.
        steps: Optimiser steps; None to take `time_s`, or else `STEPS`.
        time_s: Seconds of wall time to fit into: the rate is measured once, before the first step, and becomes steps.
        batch: Points a step.
        levels: Distinct noise levels in one batch; must divide it.
        reference: How many points of the batch the posterior of the target runs over (decision 0030); 0 takes
            each point's own clean point alone, which is plain denoising.
        learning_rate: Its peak, after `warmup` steps; then as `decay` says.
        warmup: Steps over which the rate grows.
        ema: Decay of the averaged weights a step.
        clip: Largest norm of the gradient; None for any.
        precision: Of the network's matrix products while training. bfloat16 pays only where the CPU has it.
        threads: Threads of torch; part of the result's identity.
        width: Hidden units of the network.
        blocks: Residual blocks of the network.
        schedule: Name of the noise schedule of the bundle.
        checkpoint_every: Steps between checkpoints.
        samples: Points drawn from the finished model, for its figures and picture.
        dtype: How the finished bundle stores its weights.
        command: The command to be recorded in the manifest.
        network: "mlp" predicts v at any noise level; "public" is the public code's 2-D network, which predicts the
            noise at one of `diffusion_steps` integer steps.
        diffusion_steps: Integer steps of the schedule, made as the public code makes them; None for continuous time.
        num_channels: Hidden units of the public network.
        num_res_blocks: Residual blocks of the public network, on the way in and on the way out.
        dropout: Of the public network while it is trained.
        decay: What becomes of the learning rate after `warmup`.
        beta2: Decay of AdamW's second moments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str | None = None
    data: Path | None = None
    name: Annotated[str, AfterValidator(check_domain)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Count | None = None
    time_s: Positive | None = None
    batch: Count = 2048
    levels: Count = 256
    reference: Annotated[int, Field(ge=0)] = 1024
    learning_rate: Positive = 2e-3
    warmup: Annotated[int, Field(ge=0)] = 100
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip: Positive | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Count = 1
    width: Count = 160
    blocks: Count = 4
    schedule: str = SCHEDULE
    checkpoint_every: Count = 250
    samples: Count = 10_000
    dtype: Literal["float32", "float16"] = "float32"
    command: str = ""

    network: Literal["mlp", "public"] = "mlp"
    diffusion_steps: Annotated[int, Field(ge=2, le=10_000)] | None = None
    num_channels: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 256
    num_res_blocks: Annotated[int, Field(ge=1, le=64)] = 3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay: Literal["cosine", "none"] = "cosine"
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.99

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if (self.domain is None) == (self.data is None):
            raise ValueError("give one of: --domain, --data (points), --images (a folder of pictures)")
        if self.steps is not None and self.time_s is not None:
            raise ValueError("give either steps or time_s")
        if self.batch % self.levels:
            raise ValueError(f"levels ({self.levels}) must divide batch ({self.batch})")
        if self.reference and self.batch % self.reference:
            raise ValueError(f"reference ({self.reference}) must divide batch ({self.batch})")
        if self.network == "public" and (self.diffusion_steps is None or self.reference):
            raise ValueError(
                "the public network learns the noise of each point at one of its diffusion steps"
            )
        return self

    @property
    def schedule_config(self) -> ScheduleConfig:
        """The noise schedule, as the bundle names it."""
        return ScheduleConfig(name=self.schedule, steps=self.diffusion_steps)

    @property
    def label(self) -> str:
        """What the bundle calls its domain."""
        if self.name is not None:
            return self.name
        return self.domain if self.domain is not None else domain_from(Path(str(self.data)).stem) or "points"

    def with_steps(self, steps: int) -> TrainConfig:
        """The same run with its number of steps settled."""
        return self.model_copy(update={"steps": steps, "time_s": None})

    def identity(self) -> str:
        """Digest of what the weights depend on; two runs with the same one can continue each other."""
        free = {"data", "name", "command", "checkpoint_every", "samples", "dtype", "time_s"}
        # Left out at their defaults, so that runs of the first release can be gone on with.
        free |= {
            name for name in LATER_FIELDS if getattr(self, name) == type(self).model_fields[name].default
        }
        return hashlib.sha256(self.model_dump_json(exclude=free).encode()).hexdigest()

"""The settings of a run that distils a model; `ddib model distil` and `train` share them.

What is None follows from the kind of the teacher's samples, which `settled` fills in.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from ddib_fed.training.settings.fields import (
    BATCH,
    EMA,
    RATE,
    Device,
    Domain,
    Name,
    Plan,
    Precision,
    Seed,
    StoredDtype,
    Threads,
    Time,
    Timed,
    TrainConfig,
    says,
)

POINTS = MappingProxyType(
    {
        "batch": 2048,
        "learning_rate": 1e-3,
        "steps": 4000,
        "ema": 0.999,
        "checkpoint_every": 500,
        "teacher_evaluations": 24,
        "uses": 16,
        "samples": 10_000,
    }
)
PICTURES = MappingProxyType(
    {
        "batch": 64,
        "learning_rate": 5e-4,
        "steps": 3000,
        "ema": 0.998,
        "checkpoint_every": 250,
        "teacher_evaluations": 24,
        "uses": 32,
        "samples": 256,
    }
)
"""What is taken where nothing is asked for, by the kind of samples."""


class DistilConfig(TrainConfig):
    """One run that distils a model into a flow map of both directions."""

    kind = "distilled"
    free = frozenset(
        {"teacher", "data", "images", "name", "command", "checkpoint_every", "samples", "dtype", "time_s", "microbatch",
         "skip_bad", "device", "soften_sigma", "timed_s"}
    )  # fmt: skip

    teacher: Annotated[str, says("The model: a shipped one by name, or a bundle's folder.")]
    teacher_digest: Annotated[str, says("Digest of that bundle; filled in.")] = ""
    sample_kind: Annotated[Literal["point", "picture"] | None, says("Of the teacher; filled in.")] = None
    soften_sigma: Annotated[float, says("Of the teacher; filled in.", ge=0, le=1)] = 0.0
    domain: Domain = None
    data: Annotated[Path | None, says("Your points (N, D), .npy.")] = None
    images: Annotated[Path | None, says("Your pictures, below this folder.")] = None
    classes: Annotated[
        Literal["folders", "prefix"] | None,
        says(
            "Where the classes of --images are: in sub-folders, or before the first underscore of the file name."
        ),
    ] = None
    skip_bad: Annotated[bool, says("Leave out files that cannot be read, and list them.")] = False
    name: Name = None
    seed: Seed = 0
    steps: Annotated[
        int | None, says("Optimiser steps; default: 4,000 for points, 3,000 for pictures.", ge=1)
    ] = None
    time_s: Time = None
    batch: Annotated[int | None, says(BATCH, ge=2)] = None
    microbatch: Annotated[int | None, says("How many at once; halved when memory runs out.", ge=1)] = None
    learning_rate: Annotated[float | None, says(RATE, gt=0, allow_inf_nan=False)] = None
    warmup: Annotated[
        int, says("Steps over which the learning rate grows; a fifth of all at most.", ge=0)
    ] = 100
    ema: Annotated[float | None, says(EMA, ge=0, lt=1)] = None
    clip: Annotated[float | None, says("Largest norm of the gradient; None for any.", gt=0)] = 1.0
    precision: Precision = "float32"
    threads: Threads = 1
    device: Device = "cpu"
    teacher_evaluations: Annotated[int | None, says("Evaluations of the teacher a path.", ge=8, le=1000)] = (
        None
    )
    uses: Annotated[int | None, says("Steps that ask each batch of paths before it is replaced.", ge=1)] = (
        None
    )
    dtype: StoredDtype = "float16"
    checkpoint_every: Annotated[int | None, says("Steps between checkpoints.", ge=1)] = None
    samples: Annotated[
        int | None, says("Held-out samples that the errors are measured on, at most.", ge=1)
    ] = None
    command: Annotated[str, says("The command to be recorded in the manifest.")] = ""
    timed_s: Timed = None
    planned: Plan = ()

    decay: ClassVar[str] = "cosine"
    beta2: ClassVar[float] = 0.99
    weight_decay: ClassVar[float] = 0.0
    dp_epsilon: ClassVar[None] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if sum(part is not None for part in (self.domain, self.data, self.images)) > 1:
            raise ValueError("give one of: domain, data (points), images (a folder of pictures)")
        if self.steps is not None and self.time_s is not None:
            raise ValueError("give either steps or time_s")
        if self.batch is not None and self.batch % 2:
            raise ValueError("batch is even: half of it starts from data, half from noise")
        if self.images is None and (self.classes is not None or self.skip_bad):
            raise ValueError("classes and skip_bad are for images (a folder of pictures)")
        return self

    @property
    def validate_every(self) -> int:
        return self.checkpoint_every or 1

    def settled(self, steps: int | None = None, **found: Any) -> Self:
        """The same run with what the kind of samples says in place of None, and `found` in place of what it has."""
        usual = POINTS if self.sample_kind == "point" else PICTURES
        values: dict[str, Any] = {name: usual[name] for name in usual if getattr(self, name) is None}
        if self.time_s is not None:
            values.pop("steps", None)
        batch = int(values.get("batch") or self.batch or 1)
        values["microbatch"] = min(self.microbatch or batch, batch)
        if steps is not None:
            values |= {"steps": steps, "time_s": None}
        return type(self).model_validate(self.model_dump() | values | found)

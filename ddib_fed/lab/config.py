"""The settings of a run with differential privacy, and of one that distils a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from ddib_fed.training.config import MODELS, PRESET, TrainConfig, says

USUAL: Mapping[str, Mapping[str, Any]] = {
    "point": {
        "batch": 2048, "learning_rate": 1e-3, "ema": 0.999, "checkpoint_every": 500, "uses": 16, "samples": 10_000
    },
    "picture": {
        "batch": 64, "learning_rate": 5e-4, "ema": 0.998, "checkpoint_every": 250, "uses": 32, "samples": 256
    },
}  # fmt: skip
"""What a distillation takes where nothing is asked for, by the kind of samples."""


class PrivateTrainConfig(TrainConfig):
    """A run on points or pictures with differential privacy of each training sample."""

    opener = "ddib_fed.lab.private:open_private"

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
        found = super().usual(given)
        # The public code's dropout is of a whole batch, and a spectrum is measured of the pictures.
        network = found.get("network", {}).items()
        return {
            **found,
            "network": {name: value for name, value in network if name not in {"dropout", "spectral"}},
        }

    @property
    def reference(self) -> int:
        return 0  # the target of a point may depend on no other point

    def faults(self) -> Iterable[tuple[bool, str]]:
        yield from super().faults()
        wrong = {
            "a classifier": self.kind == "classifier",
            "time_s: the noise follows from the number of steps, so say steps": self.time_s is not None,
            "precision bfloat16: gradients of single samples are computed in float32": self.precision
            != "float32",
            "domain: a synthetic domain has no training points to protect, so give data": self.kind
            == "points"
            and self.domain is not None,
            "spectral: a spectrum is measured of the pictures": bool(self.network.get("spectral")),
            "dropout: its masks are drawn for the whole batch": bool(self.network.get("dropout")),
        }
        for what, there in wrong.items():
            yield there, f"differential privacy does not go with {what}"


class DistilConfig(TrainConfig):
    """One run that distils a model into a flow map of both directions; its kind of samples is that of the teacher."""

    free = TrainConfig.free | {"teacher"}
    opener = "ddib_fed.lab.distil:open_distil"

    kind: str = "distilled"
    teacher: str
    """A shipped model by name, or a bundle's folder."""
    sample_kind: Literal["", "point", "picture"] = ""
    """Filled in when the teacher is opened."""
    teacher_evaluations: int = Field(24, ge=8, le=1000)
    """Of a path."""
    uses: int = Field(PRESET, ge=1)
    """Steps that ask each batch of paths before it is replaced."""

    @classmethod
    def usual(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(USUAL.get(given.get("sample_kind", ""), {}))
        return {
            **found,
            "warmup": 100,
            "preset": "",
            "microbatch": int(given.get("batch", found.get("batch", 2))),
        }

    def faults(self) -> Iterable[tuple[bool, str]]:
        named = sum(part is not None for part in (self.domain, self.data, self.images))
        yield named > 1, "give one of: domain, data (points), images (a folder of pictures)"
        yield self.steps is not None and self.time_s is not None, "give either steps or time_s"
        odd = self.batch is not None and bool(self.batch % 2)
        yield odd, "batch is even: half starts from data, half from noise"
        idle = self.classes is not None or self.skip_bad
        yield self.images is None and idle, "classes and skip_bad are for images (a folder of pictures)"

    @property
    def validate_every(self) -> int:
        return self.checkpoint_every

    def usual_steps(self) -> int:
        return 4_000 if self.sample_kind == "point" else 3_000

"""The settings of a run with differential privacy, and of one that distils a model of points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from ddib_fed.training.config import MODELS, PRESET, TrainConfig, says


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
        network = found.get("network", {})
        found["network"] = {name: network[name] for name in network if name not in {"dropout", "spectral"}}
        return found

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
        }
        for what, is_there in wrong.items():
            yield is_there, f"differential privacy does not go with {what}"


class DistilConfig(TrainConfig):
    """One run that distils a model of points into a flow map of both directions."""

    free = TrainConfig.free | {"teacher"}
    opener = "ddib_fed.lab.distil:open_distil"

    kind: str = "distilled"
    teacher: str
    """A shipped model by name, or a bundle's folder."""
    teacher_evaluations: int = Field(24, ge=8, le=1000)  # of a path
    uses: int = Field(PRESET, ge=1)  # steps that ask each batch of paths before it is replaced

    @classmethod
    def usual(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "batch": 2048, "learning_rate": 1e-3, "ema": 0.999, "checkpoint_every": 500, "uses": 16, "warmup": 100,
            "samples": 10_000, "preset": "", "microbatch": int(given.get("batch", 2048)),
        }  # fmt: skip

    def faults(self) -> Iterable[tuple[bool, str]]:
        both = self.domain is not None and self.data is not None
        yield both or self.images is not None, "give one of: domain, data (points)"
        yield self.steps is not None and self.time_s is not None, "give either steps or time_s"
        yield bool(self.batch % 2), "batch is even: half starts from data, half from noise"

    def usual_steps(self) -> int:
        return 4_000

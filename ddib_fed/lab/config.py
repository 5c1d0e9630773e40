"""The settings of a run with differential privacy, and of one that distils a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from ddib_fed.training.config import MODELS, PRESET, TrainConfig, says

USUAL: Mapping[str, Mapping[str, Any]] = {
    "point": {
        "batch": 2048, "learning_rate": 1e-3, "ema": 0.999, "checkpoint_every": 500, "teacher_evaluations": 24,
        "uses": 16, "samples": 10_000,
    },
    "picture": {
        "batch": 64, "learning_rate": 5e-4, "ema": 0.998, "checkpoint_every": 250, "teacher_evaluations": 24,
        "uses": 32, "samples": 256,
    },
}  # fmt: skip
"""What is taken where nothing is asked for, by the kind of samples."""


class PrivateTrainConfig(TrainConfig):
    """A run on points or pictures with differential privacy of each training sample."""

    opener = "ddib_fed.lab.private:open_private"

    dp_epsilon: float = says(
        ...,
        "What the whole run may spend at most. It bounds what the weights tell of one training sample, and hides "
        "no picture that is translated (SECURITY.md).",
        MODELS,
        gt=0,
        le=1000,
    )
    dp_delta: float = says(1e-5, "Its delta, less than 1 / training samples.", MODELS, gt=0, lt=1)
    dp_clip: float = says(
        1.0, "Norm to which the gradient of each sample is clipped.", MODELS, gt=0, allow_inf_nan=False
    )
    dp_draws: int = says(
        4,
        "Noise levels, with noise of their own, over which a sample's gradient is the mean.",
        MODELS,
        ge=1,
        le=1024,
    )
    dp_accountant: Literal["prv", "rdp"] = says(
        "prv", "What adds up the steps: prv needs less noise, rdp answers at once.", MODELS
    )

    @classmethod
    def usual(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        # The target of a point may depend on no other point, and the public code's dropout is of a whole batch.
        found = super().usual(given)
        network = {name: value for name, value in found.get("network", {}).items() if name != "dropout"}
        return {**found, "reference": 0, "network": network}

    @classmethod
    def usual_network(cls, given: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
        found = super().usual_network(given, network)
        return {name: value for name, value in found.items() if name != "spectral"}

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
            "reference: the target of a point would depend on the others": self.reference > 0,
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
    # Filled in when the teacher is opened.
    teacher_digest: str = ""
    sample_kind: Literal["", "point", "picture"] = ""
    teacher_evaluations: int = Field(PRESET, ge=8, le=1000)
    """Of a path."""
    uses: int = Field(PRESET, ge=1)
    """Steps that ask each batch of paths before it is replaced."""

    @classmethod
    def usual(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(USUAL.get(given.get("sample_kind", ""), {}))
        batch = int(given.get("batch", found.get("batch", 2)))
        return {**found, "warmup": 100, "levels": 1, "reference": 0, "preset": "", "microbatch": batch}

    def faults(self) -> Iterable[tuple[bool, str]]:
        named = sum(part is not None for part in (self.domain, self.data, self.images))
        yield named > 1, "give one of: domain, data (points), images (a folder of pictures)"
        yield self.steps is not None and self.time_s is not None, "give either steps or time_s"
        yield (
            self.batch is not None and bool(self.batch % 2),
            "batch is even: half starts from data, half from noise",
        )
        idle = self.classes is not None or self.skip_bad
        yield self.images is None and idle, "classes and skip_bad are for images (a folder of pictures)"

    @property
    def validate_every(self) -> int:
        return self.checkpoint_every

    def usual_steps(self) -> int:
        return 4_000 if self.sample_kind == "point" else 3_000

"""Settings of a run with differential privacy, and what cannot be had together with it.

A run on points and a run on pictures have the same fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import model_validator

from ddib_fed.training.settings.fields import TrainConfig, says

DpEpsilon = Annotated[
    float | None,
    says(
        "Differential privacy of each training sample: what the whole run may spend at most (DP-SGD; needs the extra "
        "dp). It bounds what the weights tell of one training sample, and hides no picture that is translated "
        "(SECURITY.md).",
        gt=0,
        le=1000,
    ),
]
DpDelta = Annotated[float, says("Its delta, less than 1 / training samples.", gt=0, lt=1)]
DpClip = Annotated[
    float, says("Norm to which the gradient of each sample is clipped.", gt=0, allow_inf_nan=False)
]
DpDraws = Annotated[
    int,
    says("Noise levels, with noise of their own, over which a sample's gradient is the mean.", ge=1, le=1024),
]
DpAccountant = Annotated[
    Literal["prv", "rdp"], says("What adds up the steps: prv needs less noise, rdp answers at once.")
]
DP_FIELDS = frozenset({"dp_epsilon", "dp_delta", "dp_clip", "dp_draws", "dp_accountant"})
"""Left out of a run's identity at their defaults, and each party's own affair."""


class PrivateTrainConfig(TrainConfig):
    """What every run has that can be private; without an epsilon it is an ordinary one."""

    later = DP_FIELDS
    if TYPE_CHECKING:
        precision: Literal["float32", "bfloat16"]

    dp_epsilon: DpEpsilon = None
    dp_delta: DpDelta = 1e-5
    dp_clip: DpClip = 1.0
    dp_draws: DpDraws = 4
    dp_accountant: DpAccountant = "prv"

    @model_validator(mode="after")
    def _private_fits(self) -> Self:
        if self.dp_epsilon is None:
            fields = type(self).model_fields
            idle = [name for name in sorted(DP_FIELDS) if getattr(self, name) != fields[name].default]
            if idle:
                raise ValueError(f"{idle[0]} has no effect without dp_epsilon")
            return self
        for what, there in {**_never(self), **self.never_private()}.items():
            if there:
                raise ValueError(f"dp_epsilon does not go with {what}")
        return self

    def never_private(self) -> dict[str, bool]:
        return {}


def _never(config: PrivateTrainConfig) -> dict[str, bool]:
    return {
        "time_s: the noise follows from the number of steps, so say steps": config.time_s is not None,
        "precision bfloat16: gradients of single samples are computed in float32": config.precision
        != "float32",
    }

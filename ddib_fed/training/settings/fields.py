"""What all training configs have, and fields that several have, with their limits and their help."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ddib_fed.errors import SettingsInvalid
from ddib_fed.names import check_domain


def says(text: str, **limits: Any) -> Any:
    return Field(description=text, **limits)


Domain = Annotated[
    str | None,
    says(
        "A synthetic domain, by name or by the paper's index 0 to 5, or a domain of pictures that packages carry: "
        "satellite, relief, etopo, satellite-64, relief-64, brain-t1, brain-t2."
    ),
]
Name = Annotated[
    Annotated[str, AfterValidator(check_domain)] | None,
    says("Name of the domain in the bundle; by default it is named after its data."),
]
Seed = Annotated[int, says("All randomness follows from it.", ge=0, lt=2**63)]
Steps = Annotated[int | None, says("Optimiser steps; default without --time: 2,000, or the preset's.", ge=1)]
Time = Annotated[float | None, says("Take as many steps as fit into this time.", gt=0, allow_inf_nan=False)]
Timed = Annotated[float | None, says("Time that the run may take; filled in.")]
Plan = Annotated[
    tuple[tuple[int, float, int], ...],
    says(
        "Each time that the number of steps was planned: the step, the share of the run behind it, the steps in all; "
        "filled in."
    ),
]
Threads = Annotated[int, says("Threads of torch; more may be slower.", ge=1)]
Precision = Annotated[
    Literal["float32", "bfloat16"],
    says("Precision of matrix products; bfloat16 is faster only on machines that have it."),
]
Device = Annotated[
    Literal["cpu", "cuda", "auto"], says("Device to compute on; default: cpu. auto is a GPU if there is one.")
]
StoredDtype = Annotated[
    Literal["float32", "float16"], says("Type of stored weights: float32 for points, float16 for pictures.")
]
BATCH = "Points (2,048) or pictures (the preset's) a step, over all processes."
RATE = "Peak of the learning rate: 2e-3, or the preset's."
EMA = "Decay of the averaged weights."
NETWORK = (
    "Pictures: another value of a field of the network, e.g. model_channels=48 or channel_mult=1,2,3. Points: public, "
    "for the public DDIB code's network and objective, and with it num_channels, num_res_blocks, dropout."
)


class TrainConfig(BaseModel):
    """What every run has; its fields stand in the subclasses, in an order that `identity` depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    free: ClassVar[frozenset[str]]
    """Fields that no weight depends on."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields left out of the identity at their defaults, so that runs of the first release can be resumed."""
    if TYPE_CHECKING:
        steps: int | None
        time_s: float | None
        timed_s: float | None
        planned: tuple[tuple[int, float, int], ...]

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
        fields = type(self).model_fields
        unsaid = {name for name in self.later if getattr(self, name) == fields[name].default}
        return hashlib.sha256(self.model_dump_json(exclude={*self.free, *unsaid}).encode()).hexdigest()

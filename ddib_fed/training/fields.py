"""Fields that several training configs have, with their limits and the help of `ddib model train`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ddib_fed.names import check_domain


def says(text: str, **limits: Any) -> Any:
    """A field with its limits and its description."""
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
    says("What the bundle calls its domain, if not after what it is made of."),
]
Seed = Annotated[int, says("All randomness follows from it.", ge=0, lt=2**63)]
Steps = Annotated[int | None, says("Optimiser steps; without it and --time 2,000, or the preset's.", ge=1)]
Time = Annotated[float | None, says("Take as many steps as fit into this time.", gt=0, allow_inf_nan=False)]
Threads = Annotated[int, says("Threads of torch; more may be slower.", ge=1)]
Precision = Annotated[
    Literal["float32", "bfloat16"],
    says("Of matrix products; bfloat16 is faster only on machines that have it."),
]
Device = Annotated[Literal["cpu", "cuda", "auto"], says("cpu without it; auto is a GPU where there is one.")]
StoredDtype = Annotated[
    Literal["float32", "float16"], says("Of stored weights: float32 for points, float16 for pictures.")
]
BATCH = "Points (2,048) or pictures (the preset's) a step, over all processes."
RATE = "Its peak: 2e-3, or the preset's."
EMA = "Decay of the averaged weights."
NETWORK = (
    "Pictures: another value of a field of the network, e.g. model_channels=48 or channel_mult=1,2,3. Points: public, "
    "for the public DDIB code's network and objective, and with it num_channels, num_res_blocks, dropout."
)

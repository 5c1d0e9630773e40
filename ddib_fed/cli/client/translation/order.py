"""What a client asks for, apart from the files; its digest tells results of the same request from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.wire.jobs import Settings


@dataclass(frozen=True, slots=True)
class Order:
    """The request, apart from the files."""

    target: str
    settings: Settings
    cycle: bool
    keep_latent: bool
    deadline_s: float | None
    source_class: str = ""
    target_class: str = ""
    guidance: Guidance = UNGUIDED
    no_calibration: bool = False
    in_process: str = ""
    """Digest of two models of this process and of what is asked of them alone; empty between nodes."""

    def digest(self, institution: str, classes: tuple[str, str] | None = None) -> str:
        """SHA-256, hex, of all that decides what a file becomes; the deadline does not."""
        asked = asdict(self) | {"institution": institution, "classes": classes}
        del asked["deadline_s"]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def order_of(
    target: str, asked: Mapping[str, Any], solver: Settings | None = None, in_process: str = ""
) -> Order:
    """The request from the options of a command, or from these and the solver of two models in one process."""
    return Order(
        target,
        solver
        or Settings(
            asked["solver"],
            asked["order"],
            asked["evaluations"],
            asked["grid"],
            asked["depth"],
            asked["encoder"],
        ).of_quality(asked["quality"]),
        asked["cycle"],
        asked["keep_latent"],
        asked["deadline"],
        asked["source_class"],
        asked["target_class"],
        Guidance(asked["guidance"], asked["classifier_scale"], clip=bool(asked["clip"])),
        asked["no_calibration"],
        in_process,
    )

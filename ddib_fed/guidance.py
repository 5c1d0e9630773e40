"""How strongly decoding is steered towards a class: the numbers of a request, apart from the networks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddib_fed.errors import SettingsInvalid


@dataclass(frozen=True, slots=True)
class Guidance:
    """Guidance of decoding, numbers alone: the classifier belongs to the party that decodes."""

    scale: float | None = None
    classifier_scale: float | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        for name, value in (("guidance", self.scale), ("classifier_scale", self.classifier_scale)):
            if value is not None and not math.isfinite(value):
                raise SettingsInvalid(f"{name} {value} is not a finite number", facts={"field": name})
        if self.scale is not None and self.classifier_scale is not None:
            raise SettingsInvalid("guidance is by a classifier or free of one, not both", hint="choose one")

    @property
    def steers(self) -> bool:
        return self.scale is not None or self.classifier_scale is not None

    @property
    def predictions(self) -> int:
        return 2 if self.classifier_scale is not None or self.scale not in {None, 0.0, 1.0} else 1


UNGUIDED = Guidance()

"""How strongly decoding is steered towards a class: the numbers of a request, apart from the networks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddib_fed.errors import SettingsInvalid


@dataclass(frozen=True, slots=True)
class Guidance:
    """Guidance of one leg, numbers alone: the classifier belongs to the party that decodes.

    Attributes:
        scale: Of classifier-free guidance: 0 is the prediction without a class, 1 the one with it; None for none.
        classifier_scale: Weight of the party's classifier; None for no classifier guidance.
        encoding: Whether encoding is guided too. Then a cycle closes, but latents are no longer noise; the public code
            guides decoding alone, and so do nodes.
        clip: Whether decoding holds predictions of the data within [-1, 1] in the model's units, as the public code
            does; the map is then no longer invertible. Of pictures, for models whose units are [-1, 1] alone.

    Raises:
        SettingsInvalid: Both kinds of guidance, guided encoding without guidance, or a number that is not finite.
    """

    scale: float | None = None
    classifier_scale: float | None = None
    encoding: bool = False
    clip: bool = False

    def __post_init__(self) -> None:
        for name, value in (("guidance", self.scale), ("classifier_scale", self.classifier_scale)):
            if value is not None and not math.isfinite(value):
                raise SettingsInvalid(f"{name} {value} is not a finite number", facts={"field": name})
        if self.scale is not None and self.classifier_scale is not None:
            raise SettingsInvalid("guidance is by a classifier or free of one, not both", hint="choose one")
        if self.encoding and not self.steers:
            raise SettingsInvalid(
                "encoding is to be guided too, and there is no guidance",
                hint="add --classifier MODEL or --guidance SCALE, or omit --guide",
                facts={"field": "guide"},
            )

    @property
    def steers(self) -> bool:
        """Whether there is a class to steer towards."""
        return self.scale is not None or self.classifier_scale is not None

    @property
    def predictions(self) -> int:
        """What a guided evaluation takes: 2, for two predictions or a gradient, and 1 where nothing is added."""
        return 2 if self.classifier_scale is not None or self.scale not in {None, 0.0, 1.0} else 1


UNGUIDED = Guidance()

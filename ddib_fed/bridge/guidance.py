"""How strongly decoding is steered towards a class."""

from __future__ import annotations

from dataclasses import dataclass

from ddib_fed.diffusion.guidance import check_guidance


@dataclass(frozen=True, slots=True)
class Guidance:
    """Guidance of one leg, numbers alone: the classifier belongs to the party.

    Attributes:
        scale: Of classifier-free guidance; None for none, 1 follows the conditional model itself.
        classifier_scale: Weight of the party's classifier; None for no classifier guidance.
        encoding: Whether encoding is guided too. Then a cycle closes, but latents are no longer noise; the public code
            guides decoding alone.
        clip: Whether decoding holds predictions of the picture within [-1, 1], as the public code does; the map is then
            no longer invertible. For models whose units are [-1, 1] alone.

    Raises:
        SettingsInvalid: Both kinds of guidance, guided encoding without guidance, or a number that is not finite.
    """

    scale: float | None = None
    classifier_scale: float | None = None
    encoding: bool = False
    clip: bool = False

    def __post_init__(self) -> None:
        """Refuse what would be without effect."""
        by_classifier = self.classifier_scale is not None
        check_guidance(self.scale, by_classifier, self.classifier_scale, encoding=self.encoding)

    @property
    def steers(self) -> bool:
        """Whether there is a class to steer towards."""
        return self.scale is not None or self.classifier_scale is not None


UNGUIDED = Guidance()

"""The guidance that a target offers, and the check of a request against it."""

from __future__ import annotations

from dataclasses import dataclass

from ddib_fed.errors import PolicyDenied, SettingsInvalid
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.canonical import DIGEST_BYTES, MAX_CLASSES, Value, require, require_number

MAX_GUIDANCE = 1000.0
"""The largest scale; published scales are 1 to 10."""


@dataclass(frozen=True, slots=True)
class GuidanceTerms:
    """The guidance that a target offers; the fields are those of the message of this name.

    Raises:
        MessageInvalid: A field is outside what docs/protocol.md allows; `facts["field"]` names it.
    """

    max_guidance: float = 0.0
    max_classifier_scale: float = 0.0
    classifier_sha256: bytes = b""
    classifier_classes: int = 0
    clip: bool = False

    def __post_init__(self) -> None:
        require_number(self.max_guidance, 0, MAX_GUIDANCE, "max_guidance")
        require_number(self.max_classifier_scale, 0, MAX_GUIDANCE, "max_classifier_scale")
        require_number(self.classifier_classes, 0, MAX_CLASSES, "classifier_classes")
        there = DIGEST_BYTES if self.max_classifier_scale > 0 else 0
        require(len(self.classifier_sha256) == there, "classifier_sha256", f"must be {there} bytes")
        require(
            (self.classifier_classes > 0) == (there > 0),
            "classifier_classes",
            "must be those of the classifier",
        )

    def values(self) -> dict[str, Value]:
        """The fields as they enter the digest."""
        return {
            "classifier_classes": self.classifier_classes,
            "classifier_sha256": self.classifier_sha256.hex(),
            "clip": int(self.clip),
            "max_classifier_scale": float(self.max_classifier_scale),
            "max_guidance": float(self.max_guidance),
        }


NO_GUIDANCE = GuidanceTerms()


def guidance_to_pb(asked: Guidance) -> common_pb2.GuidanceSettings | None:
    """A request's guidance as a message; None for none.

    Raises:
        SettingsInvalid: Guided encoding, which works only in one process.
    """
    if asked.encoding:
        raise SettingsInvalid(
            "nodes guide decoding alone: the latent of a guided encoding is not noise and is not sent",
            hint="omit --guide, or use `ddib translate --source` in one process",
        )
    if asked == UNGUIDED:
        return None
    return common_pb2.GuidanceSettings(
        guidance=asked.scale, classifier_scale=asked.classifier_scale, clip=asked.clip
    )


def guidance_from_pb(message: common_pb2.GuidanceSettings) -> Guidance:
    """Guidance read from the wire.

    Raises:
        SettingsInvalid: Both kinds at once.
    """
    return Guidance(
        message.guidance if message.HasField("guidance") else None,
        message.classifier_scale if message.HasField("classifier_scale") else None,
        clip=message.clip,
    )


def check_offered(asked: Guidance, terms: GuidanceTerms | None, of: str) -> None:
    """Return if a target offers the guidance of a request.

    Args:
        asked: The guidance of the request.
        terms: The target's offer; None for no guidance.
        of: INSTITUTION/DOMAIN of the target, for the error.

    Raises:
        SettingsInvalid: A kind of guidance that is not offered.
        PolicyDenied: More than the target's policy allows.
    """
    terms = terms or NO_GUIDANCE
    kinds = (
        ("--guidance", "max_guidance", asked.scale, terms.max_guidance),
        ("--classifier-scale", "max_classifier_scale", asked.classifier_scale, terms.max_classifier_scale),
    )
    for option, policy, scale, most in kinds:
        if scale is not None and most == 0:
            raise _not_offered(option, of)
        if scale is not None and not scale <= most:
            remedy = f"{option} {most:g} or less, or let the operator of {of} raise policy.{policy}"
            raise PolicyDenied(
                f"{of} allows {option} up to {most:g}, not {scale:g}",
                hint=remedy,
                facts={
                    "of": of,
                    "policy": policy,
                    "asked": f"{scale:g}",
                    "most": f"{most:g}",
                    "remedy": remedy,
                },
            )
    if asked.clip and not terms.clip:
        raise _not_offered("--clip", of)


_LACKS = {
    "--guidance": "its model has no null class, or its policy allows no guidance",
    "--classifier-scale": "its node hosts no classifier, or its policy allows none",
    "--clip": "its model's units are not those of [-1, 1]",
}


def _not_offered(option: str, of: str) -> SettingsInvalid:
    remedy = f"leave {option} out; `ddib domains` lists what each target offers"
    facts = {"of": of, "not_offered": option, "why": _LACKS[option], "remedy": remedy}
    return SettingsInvalid(f"{of} does not offer {option}: {_LACKS[option]}", hint=remedy, facts=facts)

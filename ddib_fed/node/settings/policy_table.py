"""The table [policy] of node.toml: what peers and own clients may do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ddib_fed.bridge.calibration.record import Kind
from ddib_fed.names import is_domain, is_institution, is_label
from ddib_fed.node.settings.section import Section
from ddib_fed.wire.contracts.guidance import MAX_GUIDANCE

Use = Literal["send", "decode", "calibrate"]
EVERY = "*"
"""In the tables of peers and clients: every other one; as a target, every target."""
LatentType = Literal["float32", "float16", "bfloat16"]


def _every_use() -> dict[str, tuple[Use, ...]]:
    return {EVERY: ("send", "decode", "calibrate")}


def _every_target() -> dict[str, tuple[str, ...]]:
    return {EVERY: (EVERY,)}


class PolicySection(Section):
    """What the node allows beyond the protocol."""

    # What each admitted peer may be used for: "send" it latents of the own clients, "decode" latents that it sends,
    # "calibrate" with it; "*" is every peer without an entry of its own. What is not listed is denied.
    peers: dict[str, tuple[Use, ...]] = Field(default_factory=_every_use)
    # Where each own client may translate to, by its name: INSTITUTION/DOMAIN, INSTITUTION for all its domains, "*" for
    # every target; the name "*" is every client without an entry of its own. What is not listed is denied.
    clients: dict[str, tuple[str, ...]] = Field(default_factory=_every_target)
    round_trip: bool = True
    size_rule: Literal["model", "refuse"] = "model"
    # Of each peer in a day: network evaluations times points, or times pixels of pictures; 0 for no limit.
    evaluations_per_day: Annotated[int, Field(ge=0)] = 20_000_000_000
    # The same of single peers, by institution.
    quotas: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    # Of each peer in a day: samples, which bounds how much of the model its outputs show; 0 for no limit.
    samples_per_day: Annotated[int, Field(ge=0)] = 0
    # Of each own client in a day: as `evaluations_per_day`, of the legs that this node computes for it.
    client_evaluations_per_day: Annotated[int, Field(ge=0)] = 20_000_000_000
    # Shares of the engine by institution, beside 1 for every other: of a peer, and of each of the own clients.
    weights: dict[str, Annotated[float, Field(ge=0.01, le=100)]] = Field(default_factory=dict)
    # The least depth of a latent, in (0, 1]: 1 for pure noise. Less keeps structure, and some of the picture.
    least_depth: Annotated[float, Field(gt=0, le=1)] = 1.0
    # Fewest network evaluations of a latent that leaves or is decoded here; flow maps, trained for few, are exempt.
    least_evaluations: Annotated[int, Field(ge=0, le=10_000)] = 8
    # The least softening of pictures, sigma / alpha of the contract; their models say how much they have.
    least_soften_sigma: Annotated[float, Field(ge=0, le=1)] = 0.0
    # How latents that leave, or are decoded here, may be made: those of "mixed" show more of the picture.
    encoders: tuple[Literal["ode", "mixed"], ...] = ("ode",)
    # In what latents may cross, both ways: a source prefers the first, and a target takes the first that both list.
    latent_types: Annotated[tuple[LatentType, ...], Field(min_length=1)] = ("float32",)
    # Largest scale of classifier-free guidance, and largest weight of the classifier, that a request may ask for; 0
    # for no guidance of that kind.
    max_guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 10.0
    max_classifier_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 10.0
    # Kinds of calibration that may be agreed on and used; each reveals something of both domains.
    calibration: tuple[Kind, ...] = ()
    # Whether peers may read the units of this model, to calibrate with anchors. No noise is added to them.
    calibration_units: bool = False

    @field_validator("peers")
    @classmethod
    def _peers(cls, value: dict[str, tuple[Use, ...]]) -> dict[str, tuple[Use, ...]]:
        for institution in value:
            if institution != EVERY and not is_institution(institution):
                raise ValueError(f"{institution!a} is no institution, e.g. south.example, or {EVERY!r}")
        return value

    @field_validator("clients")
    @classmethod
    def _clients(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, targets in value.items():
            if name != EVERY and not is_label(name):
                raise ValueError(f"{name!a} is no client's name, e.g. alice, or {EVERY!r}")
            for target in targets:
                institution, slash, domain = target.partition("/")
                if target != EVERY and not (is_institution(institution) and bool(slash) == is_domain(domain)):
                    raise ValueError(f"{target!a} is no target, e.g. south.example/relief or south.example")
        return value

    @field_validator("weights", "quotas")
    @classmethod
    def _institutions(cls, value: dict[str, float]) -> dict[str, float]:
        for institution in value:
            if not is_institution(institution):
                raise ValueError(f"{institution!a} is no institution, e.g. south.example")
        return value

"""The contract under which latents move: both sides' descriptions and the limits.

Making any of them runs every check that docs/protocol.md states and raises `MessageInvalid`, whose `facts["field"]`
names the field; nothing else checks those fields again. `agreement` makes contracts.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final

from ddib_fed.errors import ContractMismatch, Difference, PolicyDenied, SettingsInvalid
from ddib_fed.files import DIGEST_BYTES, MAX_CLASSES, Value, canonical_json, require, require_number
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.names import DOMAIN_RULE, is_domain, is_institution
from ddib_fed.v1 import common_pb2

CALIBRATION_KINDS = ("rotation", "tone", "colour-map")
"""The kinds of docs/protocol.md."""
LAST_MOMENT = 253_402_300_799
"""The end of the year 9999 in Unix seconds."""


@dataclass(frozen=True, slots=True)
class CalibrationTerms:
    """The calibration under which a source encodes; the fields are those of the message of this name."""

    sha256: bytes
    kind: str
    expires: int

    def __post_init__(self) -> None:
        require(len(self.sha256) == DIGEST_BYTES, "calibration.sha256", "must be 32 bytes")
        kinds = ", ".join(CALIBRATION_KINDS)
        require(self.kind in CALIBRATION_KINDS, "calibration.kind", f"must be one of {kinds}")
        require_number(self.expires, 1, LAST_MOMENT, "calibration.expires")

    def __str__(self) -> str:
        return f"{self.kind} {self.sha256.hex()}"


MAX_GUIDANCE = 1000.0
"""The largest scale; published scales are 1 to 10."""


@dataclass(frozen=True, slots=True)
class GuidanceTerms:
    """The guidance that a target offers; the fields are those of the message of this name."""

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


NO_GUIDANCE = GuidanceTerms()


def guidance_to_pb(asked: Guidance) -> common_pb2.GuidanceSettings | None:
    """A request's guidance as a message; None for none."""
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
    return Guidance(
        message.guidance if message.HasField("guidance") else None,
        message.classifier_scale if message.HasField("classifier_scale") else None,
        clip=message.clip,
    )


def check_offered(asked: Guidance, terms: GuidanceTerms | None, of: str) -> None:
    """Return if the target `of`, INSTITUTION/DOMAIN, offers the guidance of a request."""
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


PROTOCOL: Final = 1
"""The version of the protocol that this release speaks, its only one."""

HIGHEST_TERMINAL_LAMBDA = -4.5
"""The largest terminal lambda: there the prior is N(0, I) within exp(-9) = 1.2e-4 in relative variance."""

LOWEST_INITIAL_LAMBDA = 3.0
"""The smallest lambda of the ODE's data end."""

LAMBDA_RANGE = 1_000.0
"""The largest meaningful log signal-to-noise ratio; a schedule that ends at zero SNR states a number."""

MAX_SIDE_LENGTH = 65_536
MAX_SAMPLE_NUMBERS = 2**28
MAX_EVALUATIONS = 10_000

SAMPLE_KINDS = {"point": common_pb2.SAMPLE_KIND_POINT, "picture": common_pb2.SAMPLE_KIND_PICTURE}
RANKS = {"point": 1, "picture": 3}
VALUE_RANGES = {"point": ("unit-std",), "picture": ("minus-one-to-one", "minus-one-to-one-opponent")}
"""Value ranges of a sample, before a model normalises them; the first of each kind is the usual one."""
REFUSE = "refuse"
"""The size rule of a side that accepts only pictures of the model's size."""
SIZE_RULES = {"point": ("none",), "picture": ("resize", "crop", "pad", REFUSE)}
PICTURE_BITS = (8, 16)
MAX_CLASS_NAMES = 10_000
MAX_CLASS_NAME = 64
LARGEST_VALUE = 1e9
"""The largest raw value of a picture's file."""


@dataclass(frozen=True, slots=True)
class PictureTerms:
    """The values in a picture's file; the fields are those of the message of this name."""

    low: float
    high: float
    bits: int

    def __post_init__(self) -> None:
        require_number(self.low, -LARGEST_VALUE, LARGEST_VALUE, "picture.low")
        require_number(self.high, -LARGEST_VALUE, LARGEST_VALUE, "picture.high")
        require(self.low < self.high, "picture.high", "must be above picture.low")
        require(self.bits in PICTURE_BITS, "picture.bits", "must be 8 or 16")


@dataclass(frozen=True, slots=True)
class ContractSide:
    """One side's half of a contract; the fields are those of the message of this name."""

    institution: str
    domain: str
    sample_kind: str
    sample_shape: tuple[int, ...]
    model_sha256: bytes
    terminal_lambda: float
    initial_lambda: float
    classes: int = 0
    size_rule: str = "none"
    value_range: str = "unit-std"
    soften_sigma: float = 0.0
    picture: PictureTerms | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(is_institution(self.institution), "institution", "must be a DNS name in lower case")
        require(is_domain(self.domain), "domain", f"must be {DOMAIN_RULE}")
        require(self.sample_kind in RANKS, "sample_kind", "must be point or picture")
        rank = RANKS[self.sample_kind]
        require(len(self.sample_shape) == rank, "sample_shape", f"must have {rank} numbers")
        for length in self.sample_shape:
            require_number(length, 1, MAX_SIDE_LENGTH, "sample_shape")
        require(math.prod(self.sample_shape) <= MAX_SAMPLE_NUMBERS, "sample_shape", "is too large")
        require(len(self.model_sha256) == DIGEST_BYTES, "model_sha256", "must be 32 bytes")
        require_number(self.terminal_lambda, -LAMBDA_RANGE, LAMBDA_RANGE, "terminal_lambda")
        require_number(self.initial_lambda, -LAMBDA_RANGE, LAMBDA_RANGE, "initial_lambda")
        require_number(self.classes, 0, MAX_CLASSES, "classes")
        rules = SIZE_RULES[self.sample_kind]
        require(
            self.size_rule in rules, "size_rule", f"must be {' or '.join(rules)} for a {self.sample_kind}"
        )
        ranges = VALUE_RANGES[self.sample_kind]
        require(
            self.value_range in ranges,
            "value_range",
            f"must be {' or '.join(ranges)} for a {self.sample_kind}",
        )
        require_number(self.soften_sigma, 0, 1, "soften_sigma")
        is_picture = self.sample_kind == "picture"
        require(is_picture or self.soften_sigma == 0, "soften_sigma", "must be 0 for points")
        require(
            (self.picture is not None) == is_picture, "picture", "must be set for pictures, and only there"
        )
        names = self.class_names
        require(len(names) in {0, self.classes}, "class_names", "must be none, or one for each class")
        require(len(names) <= MAX_CLASS_NAMES, "class_names", f"must be at most {MAX_CLASS_NAMES}")
        require(
            all(map(is_class_name, names)), "class_names", "must be 1 to 64 printable ASCII characters each"
        )

    @property
    def prior_gap(self) -> float:
        """Relative deviation of the variance of this side's latents from 1: exp(2 lambda)."""
        return math.exp(2 * min(self.terminal_lambda, 0.0))

    def class_index(self, asked: str, classes: int | None = None) -> int | None:
        """The class of a name or of a decimal index of `classes` (the side's own without); None if there is none."""
        if asked in self.class_names:
            return self.class_names.index(asked)
        index = (
            int(asked)
            if asked.isascii() and asked.isdecimal() and len(asked) <= len(str(MAX_CLASSES))
            else -1
        )
        return index if 0 <= index < (self.classes if classes is None else classes) else None


def is_class_name(name: str) -> bool:
    """Whether a contract allows this class name: 1 to 64 printable ASCII characters."""
    return 1 <= len(name) <= MAX_CLASS_NAME and name.isascii() and name.isprintable()


@dataclass(frozen=True, slots=True)
class ContractLimits:
    """The target's limits; the fields are those of the message of this name."""

    max_items_per_stream: int
    max_samples_per_item: int
    max_latent_bytes: int
    max_evaluations: int
    guidance: GuidanceTerms | None = None
    min_evaluations: int = 0

    def __post_init__(self) -> None:
        require_number(self.max_items_per_stream, 1, 1_000_000, "max_items_per_stream")
        require_number(self.max_samples_per_item, 1, 2**40, "max_samples_per_item")
        require_number(self.max_latent_bytes, 4, 2**40, "max_latent_bytes")
        require_number(self.max_evaluations, 1, MAX_EVALUATIONS, "max_evaluations")
        require_number(self.min_evaluations, 0, self.max_evaluations, "min_evaluations")


@dataclass(frozen=True, slots=True)
class Contract:
    """The agreement of both sides; every latent carries its `digest`, SHA-256 over the canonical JSON, 32 bytes.

    The limits are the target's; the source encodes under the calibration, or None.
    """

    source: ContractSide
    target: ContractSide
    limits: ContractLimits
    calibration: CalibrationTerms | None = None
    digest: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.calibration is not None:
            require(self.source.sample_kind == "picture", "calibration", "is for pictures alone")
        # Once: every latent carries it, and is recorded with it.
        object.__setattr__(self, "digest", hashlib.sha256(self.canonical()).digest())

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, the same on both sides."""
        return self.target.sample_shape

    @property
    def size_rule(self) -> str:
        """How the source fits a picture to the model's size: "refuse" if either side has it."""
        return REFUSE if REFUSE in {self.source.size_rule, self.target.size_rule} else self.target.size_rule

    @property
    def prior_gap(self) -> float:
        """Largest relative deviation of the variance of either side's latents from 1."""
        return max(self.source.prior_gap, self.target.prior_gap)

    def canonical(self) -> bytes:
        """The canonical JSON that both sides hash; docs/protocol.md has an example."""
        return canonical_json({**_values(self), "protocol": PROTOCOL})


def _values(terms: Any) -> dict[str, Value]:
    """The fields of a contract or of a part of it, as they enter the digest."""
    return {each.name: _value(getattr(terms, each.name)) for each in fields(terms) if each.init}


def _value(value: Any) -> Value:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, bool):
        return int(value)
    if value is None or is_dataclass(value):
        return {} if value is None else _values(value)
    number_or_text: Value = value
    return number_or_text


def require_protocol(caller: int, answering: int, hop: str = "") -> None:
    """Raise `ContractMismatch` unless caller and answering node speak the same version of the protocol."""
    if caller != answering:
        raise ContractMismatch(
            f"the caller speaks version {caller} of the protocol, the node that answers {answering}",
            hop=hop,
            hint="update ddib-fed where the version is lower",
            differences=(
                Difference(
                    "protocol", str(caller), str(answering), "Update ddib-fed where the version is lower."
                ),
            ),
        )

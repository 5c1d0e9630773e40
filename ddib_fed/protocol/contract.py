"""The contract under which latents move: both sides' descriptions, the target's limits, and how the two sides agree.

Sides, limits and terms are the messages themselves. Bounds of single fields are options in protos/, which `check`
applies to every received message; what those cannot say is checked here, where a contract is made of them.
`MessageInvalid.facts["field"]` names the field.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from google.protobuf.message import Message

from ddib_fed.errors import ContractMismatch, Difference, PolicyDenied, SettingsInvalid
from ddib_fed.files import DIGEST_BYTES, Value, canonical_json, require
from ddib_fed.names import DOMAIN_RULE, is_domain, is_institution
from ddib_fed.record import UNGUIDED, Guidance
from ddib_fed.v1 import common_pb2
from ddib_fed.v1.common_pb2 import CalibrationTerms, GuidanceTerms

if TYPE_CHECKING:
    from ddib_fed.v1 import decoding_pb2 as pb
    from ddib_fed.v1.decoding_pb2 import ContractLimits, ContractSide

PROTOCOL: Final = 1
HIGHEST_TERMINAL_LAMBDA = -4.5
"""The largest terminal lambda: there the prior is N(0, I) within exp(-9) = 1.2e-4 in relative variance."""
LOWEST_INITIAL_LAMBDA = 3.0
LAST_MOMENT = 253_402_300_799
"""The end of the year 9999 in Unix seconds."""
MAX_EVALUATIONS = 10_000
MAX_GUIDANCE = 1000.0
"""The largest scale; published scales are 1 to 10."""
MAX_SAMPLE_NUMBERS = 2**28
MAX_CLASS_NAMES = 10_000
MAX_CLASS_NAME = 64
CalibrationKind = Literal["rotation", "tone", "colour-map"]
CALIBRATION_KINDS: Final[tuple[str, ...]] = get_args(CalibrationKind)
RANKS = {"point": 1, "picture": 3, "volume": 4}
VALUE_RANGES = {
    "point": ("unit-std",),
    "picture": ("minus-one-to-one", "minus-one-to-one-opponent"),
    "volume": ("minus-one-to-one",),
}
"""Value ranges of a sample, before a model normalises them; the first of each kind is the usual one."""
REFUSE = "refuse"
"""The size rule of a side that accepts only pictures of the model's size."""
SIZE_RULES = {"point": ("none",), "picture": ("resize", "crop", "pad", REFUSE), "volume": (REFUSE,)}


def check_side(side: ContractSide) -> ContractSide:
    """Return one side's half of a contract; raise MessageInvalid unless its fields fit together."""
    kind, names = side.sample_kind, side.class_names
    require(is_institution(side.institution), "institution", "must be a DNS name in lower case")
    require(is_domain(side.domain), "domain", f"must be {DOMAIN_RULE}")
    require(kind in RANKS, "sample_kind", "must be point, picture or volume")
    for name in ("sample_shape", "latent_shape"):
        shape, optional = getattr(side, name), name == "latent_shape"
        fits = len(shape) == RANKS[kind] or (optional and not shape)
        require(fits, name, f"must have {RANKS[kind]} numbers")
        require(math.prod(shape) <= MAX_SAMPLE_NUMBERS, name, "is too large")
    behind = bool(side.latent_shape) and kind != "point" and len(side.autoencoder_sha256) == DIGEST_BYTES
    require(
        behind == bool(side.latent_shape or side.autoencoder_sha256),
        "autoencoder_sha256",
        "must be set with latent_shape, of pictures or volumes, and only there",
    )
    require(len(side.spacing_mm) in {0, 3 * (kind == "volume")}, "spacing_mm", "must be 3 for a volume")
    for name, allowed in (("size_rule", SIZE_RULES[kind]), ("value_range", VALUE_RANGES[kind])):
        require(getattr(side, name) in allowed, name, f"must be {' or '.join(allowed)} for a {kind}")
    is_picture, picture = kind != "point", side.picture
    require(is_picture or side.soften_sigma == 0, "soften_sigma", "must be 0 for points")
    require(side.HasField("picture") == is_picture, "picture", "must be set, but for points")
    require(not is_picture or picture.low < picture.high, "picture.high", "must be above picture.low")
    require(not is_picture or picture.bits in {8, 16}, "picture.bits", "must be 8 or 16")
    require(len(names) in {0, side.classes}, "class_names", "must be none, or one for each class")
    printable = f"must be 1 to {MAX_CLASS_NAME} printable ASCII characters each"
    require(all(map(is_class_name, names)), "class_names", printable)
    return side


def is_class_name(name: str) -> bool:
    return 1 <= len(name) <= MAX_CLASS_NAME and name.isascii() and name.isprintable()


def class_index(side: ContractSide, asked: str, classes: int | None = None) -> int | None:
    """Return the class of a name or of an index below `classes` (by default the side's); None if there is none."""
    if asked in side.class_names:
        return list(side.class_names).index(asked)
    if not (asked.isascii() and asked.isdecimal() and len(asked) < 10):
        return None
    return int(asked) if int(asked) < (side.classes if classes is None else classes) else None


def check_limits(limits: ContractLimits) -> ContractLimits:
    """Return the target's limits; raise MessageInvalid unless they fit together."""
    within, terms = limits.min_evaluations <= limits.max_evaluations, limits.guidance
    require(within, "min_evaluations", "must be at most max_evaluations")
    offered = terms.max_classifier_scale > 0
    require(bool(terms.classifier_sha256) == offered, "classifier_sha256", "must be that of the classifier")
    require((terms.classifier_classes > 0) == offered, "classifier_classes", "must be the classifier's")
    return limits


def place_of(side: ContractSide) -> str:
    return f"{side.institution}/{side.domain}"


def calibration_text(terms: CalibrationTerms | None) -> str:
    """Return kind and digest; empty for None."""
    return "" if terms is None else f"{terms.kind} {terms.sha256.hex()}"


class Contract:
    """The agreement of both sides; every latent carries its `digest`, SHA-256 over the canonical JSON, 32 bytes.

    The limits are the target's; the source encodes under the calibration, or None.
    """

    def __init__(self, message: pb.Contract) -> None:
        self.message = message
        self.source, self.target = check_side(message.source), check_side(message.target)
        self.limits = check_limits(message.limits)
        self.calibration = message.calibration if message.HasField("calibration") else None
        if self.calibration is not None:
            require(self.source.sample_kind != "point", "calibration", "is not for points")
            one = self.source.autoencoder_sha256 == self.target.autoencoder_sha256
            shared = "must be no rotation: the two sides have different autoencoders"
            require(one or self.calibration.kind != "rotation", "calibration.kind", shared)
            kinds = ", ".join(CALIBRATION_KINDS)
            require(self.calibration.kind in CALIBRATION_KINDS, "calibration.kind", f"must be one of {kinds}")
        self.sample_shape = tuple(self.target.sample_shape)
        self.latent_shape = tuple(self.target.latent_shape) or self.sample_shape
        self.digest = hashlib.sha256(self.canonical()).digest()

    @property
    def size_rule(self) -> str:
        """How the source fits a picture to the model's size: "refuse" if either side has it."""
        return REFUSE if REFUSE in {self.source.size_rule, self.target.size_rule} else self.target.size_rule

    @property
    def shared_noise(self) -> bool:
        """Whether both operators allow one softening noise for all slices of a volume."""
        return self.source.shared_noise and self.target.shared_noise

    def canonical(self) -> bytes:
        """Return the canonical JSON that both sides hash; docs/protocol.md has an example."""
        return canonical_json({**_hashed(self.message), "protocol": PROTOCOL})


def _hashed(message: Message) -> dict[str, Value]:
    """Return a contract, or a part of it, as it enters the digest: every field, an absent message as an empty one."""
    values: dict[str, Value] = {}
    for field in message.DESCRIPTOR.fields:
        value: Any = getattr(message, field.name)
        if field.message_type is not None:
            values[field.name] = _hashed(value) if message.HasField(field.name) else {}
        elif field.is_repeated:
            values[field.name] = list(value)
        else:
            is_flag = isinstance(value, bool)
            values[field.name] = value.hex() if isinstance(value, bytes) else int(value) if is_flag else value
    return values


# Agreement: the same rules are applied at both ends, and each computes the digest itself.


# In reading order for the operator, with what to do. All but the last three must be the same on both sides.
_REMEDIES: Final[dict[str, str]] = {
    "sample_kind": (
        "The sides serve points, pictures or volumes, and not the same; choose another target, or serve another model."
    ),
    "sample_shape": "Serve models of one shape on both sides; train one of them again at the other's shape.",
    "latent_shape": (
        "Serve models whose autoencoders make latents of one shape, or models of pixels on both sides."
    ),
    "spacing_mm": "Resample the training volumes of one side to the other's spacing, and train it again.",
    "value_range": (
        "Train both models on data in the same range of values, and both with --set colours=opponent, or neither."
    ),
    "soften_sigma": (
        "Set the same soften_sigma in both models' manifests; the recommended value is in docs/quality.md."
    ),
    "size_rule": (
        'Train both models with the same --fit, or set policy.size_rule = "refuse" in one node.toml: then only '
        "pictures of the models' size are taken."
    ),
    "terminal_lambda": (
        f"Both must be at most {HIGHEST_TERMINAL_LAMBDA:g}, so that the latents are N(0, I) within exp(2 lambda) of "
        "relative variance; train the side above it to the end of a noisier schedule."
    ),
    "initial_lambda": (
        f"Both must be at least {LOWEST_INITIAL_LAMBDA:g}; train the side below it with a schedule that starts nearer "
        "to the data."
    ),
}


def _text(value: Any) -> str:
    if isinstance(value, CalibrationTerms):
        return calibration_text(value)
    if isinstance(value, Message):
        return place_of(cast("ContractSide", value))
    if isinstance(value, bytes):
        return value.hex() or "none"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "x".join(map(str, value))
    return "none" if value is None else str(value).removesuffix(".0")


def differences(source: ContractSide, target: ContractSide) -> tuple[Difference, ...]:
    """Return every field in which the two sides are incompatible, in reading order for the operator."""
    rules = {source.size_rule, target.size_rule}
    # The ends of the ODE may differ, but each must reach noise on one side and data on the other. Of pictures of the
    # model's size every size rule makes the same.
    fits = {
        "size_rule": len(rules) == 1 or REFUSE in rules,
        "terminal_lambda": max(source.terminal_lambda, target.terminal_lambda) <= HIGHEST_TERMINAL_LAMBDA,
        "initial_lambda": min(source.initial_lambda, target.initial_lambda) >= LOWEST_INITIAL_LAMBDA,
    }
    values = ((name, getattr(source, name), getattr(target, name)) for name in _REMEDIES)
    return tuple(
        Difference(name, _text(ours), _text(theirs), _REMEDIES[name])
        for name, ours, theirs in values
        if not fits.get(name, ours == theirs)
    )


def _mismatch(found: list[Difference], what: str, hint: str = "") -> ContractMismatch:
    names = ", ".join(difference.field for difference in found)
    return ContractMismatch(what.format(names), hint=hint, differences=tuple(found))


def agree(
    source: ContractSide,
    target: ContractSide,
    limits: ContractLimits,
    calibration: CalibrationTerms | None = None,
) -> Contract:
    """Return the contract of two sides, with the target's limits and the source's calibration.

    Raise MessageInvalid for contradictory fields, ContractMismatch with its `differences` for incompatible sides.
    """
    if unequal := list(differences(check_side(source), target)):
        hint = "each difference names what to do about it"
        raise _mismatch(unequal, f"{place_of(source)} and {place_of(target)}: {{}} differ", hint)
    from ddib_fed.v1 import decoding_pb2  # which a client does not need

    return Contract(
        decoding_pb2.Contract(source=source, target=target, limits=limits, calibration=calibration)
    )


_CHANGED: Final = {
    "source": "The target changed the source's side; ask its operator to upgrade, and report it.",
    "institution": "The node at this address belongs to another institution; correct the peer's address.",
    "contract_sha256": "The two releases write the contract differently; upgrade the older one.",
    "calibration": "The target changed the calibration that was proposed; ask its operator to upgrade, and report it.",
}


def confirm(
    response: pb.NegotiateContractResponse,
    *,
    source: ContractSide,
    target_institution: str,
    calibration: CalibrationTerms | None = None,
) -> Contract:
    """Return the contract in a target's answer after the source has verified it.

    Raise MessageInvalid for a field outside docs/protocol.md, and ContractMismatch for another source's or
    institution's contract, for one that the source cannot keep, and for another digest than is computed here.
    """
    contract = Contract(response.contract)
    answered: dict[str, tuple[Any, Any]] = {
        "source": (source, contract.source),
        "institution": (target_institution, contract.target.institution),
        "contract_sha256": (contract.digest, response.sha256),
        "calibration": (calibration, contract.calibration),
    }
    unequal = [
        *differences(source, contract.target),
        *(
            Difference(name, _text(ours), _text(theirs), _CHANGED[name])
            for name, (ours, theirs) in answered.items()
            if ours != theirs
        ),
    ]
    if unequal:
        raise _mismatch(unequal, f"the contract that {target_institution} answered with differs in {{}}")
    return contract


def require_protocol(caller: int, answering: int, hop: str = "") -> None:
    """Raise `ContractMismatch` unless caller and answering node speak the same version of the protocol."""
    if caller != answering:
        remedy = "Update ddib-fed where the version is lower."
        raise ContractMismatch(
            f"the caller speaks version {caller} of the protocol, the node that answers {answering}",
            hop=hop,
            hint="update ddib-fed where the version is lower",
            differences=(Difference("protocol", str(caller), str(answering), remedy),),
        )


def guidance_to_pb(asked: Guidance) -> common_pb2.GuidanceSettings | None:
    """Return a request's guidance as a message; None if it has none."""
    return None if asked == UNGUIDED else common_pb2.GuidanceSettings(**asdict(asked))


def guidance_from_pb(message: common_pb2.GuidanceSettings) -> Guidance:
    return Guidance(**{field.name: value for field, value in message.ListFields()})


def check_offered(asked: Guidance, terms: GuidanceTerms, of: str) -> None:
    """Raise unless the target `of`, INSTITUTION/DOMAIN, offers the guidance of a request."""
    scales = {"guidance": terms.max_guidance, "classifier_scale": terms.max_classifier_scale}
    for name, most in scales.items():
        scale, option = getattr(asked, name), name.replace("_", "-")
        if scale is not None and most == 0:
            raise _not_offered(option, of)
        if scale is not None and not scale <= most:
            remedy = f"{option} {most:g} or less, or let the operator of {of} raise policy.max_guidance"
            facts = {"of": of, "policy": "max_guidance", "asked": f"{scale:g}", "most": f"{most:g}"}
            detail = f"{of} allows {option} up to {most:g}, not {scale:g}"
            raise PolicyDenied(detail, hint=remedy, facts={**facts, "remedy": remedy})
    if asked.clip and not terms.clip:
        raise _not_offered("--clip_denoised of flags", of)


_LACKS = {
    "guidance": "its model has no null class, or its policy allows no guidance",
    "classifier-scale": "its node hosts no classifier, or its policy allows none",
    "--clip_denoised of flags": "its model's units are not those of [-1, 1]",
}


def _not_offered(option: str, of: str) -> SettingsInvalid:
    remedy = f"leave {option} out; `ddib domains` lists what each target offers"
    facts = {"of": of, "not_offered": option, "why": _LACKS[option], "remedy": remedy}
    return SettingsInvalid(f"{of} does not offer {option}: {_LACKS[option]}", hint=remedy, facts=facts)

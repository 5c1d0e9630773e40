"""Negotiates the contract of two sides, or lists the fields in which they differ.

The same function runs at both ends; the caller computes the digest itself and trusts no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ddib_fed.errors import ContractMismatch, Difference
from ddib_fed.protocol.contract import (
    HIGHEST_TERMINAL_LAMBDA,
    LOWEST_INITIAL_LAMBDA,
    REFUSE,
    CalibrationTerms,
    Contract,
    ContractLimits,
    ContractSide,
)
from ddib_fed.protocol.messages import from_message
from ddib_fed.v1 import decoding_pb2


class _Field(NamedTuple):
    name: str
    value: Callable[[ContractSide], object]
    remedy: str


def _shortest(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


# In reading order for the operator.
_MUST_MATCH = (
    _Field(
        "sample_kind",
        lambda side: side.sample_kind,
        "One side serves points and the other pictures; choose another target, or serve another model.",
    ),
    _Field(
        "sample_shape",
        lambda side: "x".join(map(str, side.sample_shape)),
        "Serve models of one shape on both sides; train one of them again at the other's shape.",
    ),
    _Field(
        "value_range",
        lambda side: side.value_range,
        "Train both models on data in the same range of values, and with the same --colours.",
    ),
    _Field(
        "soften_sigma",
        lambda side: _shortest(side.soften_sigma),
        "Set the same soften_sigma in both models' manifests; the recommended value is in docs/quality.md.",
    ),
)


def _mismatches(source: ContractSide, target: ContractSide) -> Iterable[Difference]:
    for field in _MUST_MATCH:
        here, there = field.value(source), field.value(target)
        if here != there:
            yield Difference(field.name, str(here), str(there), field.remedy)


def _size_rule(source: ContractSide, target: ContractSide) -> Iterable[Difference]:
    """A side that accepts only pictures of the model's size is compatible with every rule: none is applied then."""
    if source.size_rule != target.size_rule and REFUSE not in {source.size_rule, target.size_rule}:
        yield Difference(
            "size_rule",
            source.size_rule,
            target.size_rule,
            'Train both models with the same --fit, or set policy.size_rule = "refuse" in one node.toml: then '
            "only pictures of the models' size are taken.",
        )


def _ends(source: ContractSide, target: ContractSide) -> Iterable[Difference]:
    """Ends of the ODE: they may differ, but each must reach noise on one side and data on the other."""
    if max(source.terminal_lambda, target.terminal_lambda) > HIGHEST_TERMINAL_LAMBDA:
        yield Difference(
            "terminal_lambda",
            _shortest(source.terminal_lambda),
            _shortest(target.terminal_lambda),
            f"Both must be at most {HIGHEST_TERMINAL_LAMBDA:g}, so that the latents are N(0, I) within "
            "exp(2 lambda) of relative variance; train the side above it to the end of a noisier schedule.",
        )
    if min(source.initial_lambda, target.initial_lambda) < LOWEST_INITIAL_LAMBDA:
        yield Difference(
            "initial_lambda",
            _shortest(source.initial_lambda),
            _shortest(target.initial_lambda),
            f"Both must be at least {LOWEST_INITIAL_LAMBDA:g}; train the side below it with a schedule that "
            "starts nearer to the data.",
        )


def differences(source: ContractSide, target: ContractSide) -> tuple[Difference, ...]:
    """Every field in which the two sides are incompatible; empty if there is none."""
    return (*_mismatches(source, target), *_size_rule(source, target), *_ends(source, target))


def agree(
    source: ContractSide,
    target: ContractSide,
    limits: ContractLimits,
    calibration: CalibrationTerms | None = None,
) -> Contract:
    """The contract between two sides, with the target's limits.

    Args:
        source: The source's side.
        target: The target's side.
        limits: What the target accepts.
        calibration: Under which the source encodes, checked by the target against its store and policy; None for none.

    Raises:
        MessageInvalid: A calibration of points.
        ContractMismatch: The sides are incompatible; `differences` names each field, both values and what to do.
    """
    found = differences(source, target)
    if found:
        names = ", ".join(difference.field for difference in found)
        raise ContractMismatch(
            f"{source.institution}/{source.domain} and {target.institution}/{target.domain}: {names} differ",
            hint="each difference names what to do about it",
            differences=found,
        )
    return Contract(source, target, limits, calibration)


def confirm(
    response: decoding_pb2.NegotiateContractResponse,
    *,
    source: ContractSide,
    target_institution: str,
    calibration: CalibrationTerms | None = None,
) -> Contract:
    """The contract in a target's answer, after the source has verified it.

    Args:
        response: What the target answered.
        source: The side that the source sent.
        target_institution: The institution that the source addressed.
        calibration: That the source proposed; None for none.

    Raises:
        MessageInvalid: A field is outside what docs/protocol.md allows.
        ContractMismatch: The answer is another source's contract, another institution's, one that the source
            cannot keep, or its digest is not the one computed here.
    """
    contract = from_message(response.contract, Contract)
    found = [
        *differences(source, contract.target),
        *_tampered(contract, source, target_institution, response.sha256),
        *_recalibrated(calibration, contract.calibration),
    ]
    if found:
        names = ", ".join(difference.field for difference in found)
        raise ContractMismatch(
            f"the contract that {target_institution} answered with differs in {names}",
            differences=tuple(found),
        )
    return contract


def _tampered(
    contract: Contract, source: ContractSide, target_institution: str, sha256: bytes
) -> Iterable[Difference]:
    """Differences between an answer and its request."""
    if contract.source != source:
        remedy = "The target changed the source's side; ask its operator to upgrade, and report it."
        yield Difference("source", source.domain, contract.source.domain, remedy)
    if contract.target.institution != target_institution:
        remedy = "The node at this address belongs to another institution; correct the peer's address."
        yield Difference("institution", target_institution, contract.target.institution, remedy)
    if contract.digest != sha256:
        remedy = "The two releases write the contract differently; upgrade the older one."
        yield Difference("contract_sha256", contract.digest.hex(), sha256.hex()[:64], remedy)


def _recalibrated(
    proposed: CalibrationTerms | None, answered: CalibrationTerms | None
) -> Iterable[Difference]:
    """The calibration is the source's proposal: the target accepts it as it is, or refuses the contract."""
    if proposed != answered:
        yield Difference(
            "calibration",
            str(proposed or "none"),
            str(answered or "none"),
            "The target changed the calibration that was proposed; ask its operator to upgrade, and report it.",
        )

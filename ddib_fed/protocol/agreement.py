"""Negotiates the contract of two sides, or lists the fields in which they differ.

The same function runs at both ends; the caller computes the digest itself and trusts no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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


def _shortest(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


# Field, text of a side's value, remedy; in reading order for the operator.
_MUST_MATCH: Final[tuple[tuple[str, Callable[[ContractSide], str], str], ...]] = (
    (
        "sample_kind",
        lambda side: side.sample_kind,
        "One side serves points and the other pictures; choose another target, or serve another model.",
    ),
    (
        "sample_shape",
        lambda side: "x".join(map(str, side.sample_shape)),
        "Serve models of one shape on both sides; train one of them again at the other's shape.",
    ),
    (
        "value_range",
        lambda side: side.value_range,
        "Train both models on data in the same range of values, and with the same --colours.",
    ),
    (
        "soften_sigma",
        lambda side: _shortest(side.soften_sigma),
        "Set the same soften_sigma in both models' manifests; the recommended value is in docs/quality.md.",
    ),
)


def differences(source: ContractSide, target: ContractSide) -> tuple[Difference, ...]:
    """Every field in which the two sides are incompatible; empty if there is none."""
    found = [
        Difference(field, text(source), text(target), remedy)
        for field, text, remedy in _MUST_MATCH
        if text(source) != text(target)
    ]
    rules = source.size_rule, target.size_rule
    if (
        rules[0] != rules[1] and REFUSE not in rules
    ):  # of pictures of the model's size every rule makes the same
        remedy = (
            'Train both models with the same --fit, or set policy.size_rule = "refuse" in one node.toml: then '
            "only pictures of the models' size are taken."
        )
        found.append(Difference("size_rule", *rules, remedy))
    # The ends of the ODE may differ, but each must reach noise on one side and data on the other.
    if max(source.terminal_lambda, target.terminal_lambda) > HIGHEST_TERMINAL_LAMBDA:
        remedy = (
            f"Both must be at most {HIGHEST_TERMINAL_LAMBDA:g}, so that the latents are N(0, I) within "
            "exp(2 lambda) of relative variance; train the side above it to the end of a noisier schedule."
        )
        ends = _shortest(source.terminal_lambda), _shortest(target.terminal_lambda)
        found.append(Difference("terminal_lambda", *ends, remedy))
    if min(source.initial_lambda, target.initial_lambda) < LOWEST_INITIAL_LAMBDA:
        remedy = (
            f"Both must be at least {LOWEST_INITIAL_LAMBDA:g}; train the side below it with a schedule that "
            "starts nearer to the data."
        )
        ends = _shortest(source.initial_lambda), _shortest(target.initial_lambda)
        found.append(Difference("initial_lambda", *ends, remedy))
    return tuple(found)


def agree(
    source: ContractSide,
    target: ContractSide,
    limits: ContractLimits,
    calibration: CalibrationTerms | None = None,
) -> Contract:
    """The contract between two sides, with the target's limits and the source's calibration.

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

    Raises:
        MessageInvalid: A field is outside what docs/protocol.md allows.
        ContractMismatch: The answer is another source's contract, another institution's, one that the source
            cannot keep, or its digest is not the one computed here.
    """
    contract = from_message(response.contract, Contract)
    report = "ask its operator to upgrade, and report it."
    found = list(differences(source, contract.target))
    if contract.source != source:
        remedy = f"The target changed the source's side; {report}"
        found.append(Difference("source", source.domain, contract.source.domain, remedy))
    if contract.target.institution != target_institution:
        remedy = "The node at this address belongs to another institution; correct the peer's address."
        found.append(Difference("institution", target_institution, contract.target.institution, remedy))
    if contract.digest != response.sha256:
        remedy = "The two releases write the contract differently; upgrade the older one."
        answered = response.sha256.hex()[:64]
        found.append(Difference("contract_sha256", contract.digest.hex(), answered, remedy))
    if contract.calibration != calibration:
        remedy = f"The target changed the calibration that was proposed; {report}"
        proposed, answered = str(calibration or "none"), str(contract.calibration or "none")
        found.append(Difference("calibration", proposed, answered, remedy))
    if found:
        names = ", ".join(difference.field for difference in found)
        raise ContractMismatch(
            f"the contract that {target_institution} answered with differs in {names}",
            differences=tuple(found),
        )
    return contract

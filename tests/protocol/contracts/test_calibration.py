"""The calibration in a contract: its terms, and answers that change it."""

from dataclasses import replace
from typing import get_args

import pytest

from ddib_fed.calibration.record import KINDS, Kind
from ddib_fed.errors import ContractMismatch, MessageInvalid
from ddib_fed.protocol.agreement import agree, confirm
from ddib_fed.protocol.contract import CALIBRATION_KINDS, CalibrationTerms, Contract
from ddib_fed.protocol.messages import to_message
from ddib_fed.v1 import decoding_pb2
from tests.protocol.examples import LIMITS, TERMS, contract, picture_side

SOUTH = {"institution": "south.example", "domain": "checkerboards"}


def answer(made: Contract) -> decoding_pb2.NegotiateContractResponse:
    return decoding_pb2.NegotiateContractResponse(
        contract=to_message(made, decoding_pb2.Contract), sha256=made.digest
    )


def confirmed(made: Contract, proposed: CalibrationTerms | None = TERMS) -> Contract:
    return confirm(
        answer(made), source=picture_side(), target_institution="south.example", calibration=proposed
    )


def calibrated(terms: CalibrationTerms | None = TERMS, **changes) -> Contract:
    return agree(picture_side(), picture_side(**SOUTH, **changes), LIMITS, terms)


def test_the_kinds_are_those_of_the_signed_record():
    """The wire knows no torch and therefore no record: it has a list of its own."""
    assert CALIBRATION_KINDS == KINDS == get_args(Kind)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", b""), ("sha256", bytes(31)), ("kind", ""), ("kind", "Rotation"), ("kind", "labels"), ("expires", 0),
        ("expires", 253_402_300_800),
    ],
)  # fmt: skip
def test_terms_outside_the_protocol_name_their_field(field, value):
    with pytest.raises(MessageInvalid) as caught:
        replace(TERMS, **{field: value})
    assert caught.value.facts == {"field": f"calibration.{field}"}


@pytest.mark.parametrize(
    "other",
    [
        None,
        replace(TERMS, sha256=bytes(32)),
        replace(TERMS, kind="tone"),
        replace(TERMS, expires=TERMS.expires + 1),
    ],
)
def test_any_change_of_the_terms_changes_the_digest_and_is_refused(other):
    """Also leaving them out: a source would encode in one basis and be recorded in another."""
    assert calibrated(other).digest != calibrated().digest
    with pytest.raises(ContractMismatch) as caught:
        confirmed(calibrated(other))
    (difference,) = caught.value.differences
    assert difference.field == "calibration"
    assert difference.source == str(TERMS)
    assert confirmed(calibrated()).calibration == TERMS


def test_a_calibration_that_was_not_proposed_is_refused():
    with pytest.raises(ContractMismatch) as caught:
        confirmed(calibrated(), proposed=None)
    assert [difference.source for difference in caught.value.differences] == ["none"]


def test_points_have_no_calibration():
    with pytest.raises(MessageInvalid) as caught:
        contract(calibration=TERMS)
    assert caught.value.facts == {"field": "calibration"}

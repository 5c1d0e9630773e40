"""Which calibrations a target agrees to: those that it holds itself, as both signed them, and allows."""

import pytest

from ddib_fed.errors import CalibrationModel, CalibrationUnknown, ContractMismatch, ContractUnknown
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.protocol.contract import PROTOCOL, Contract
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from tests import audit_rows
from tests.node.agreed_calibrations import agreed
from tests.node.picture_examples import SIZE, pictures_engine
from tests.protocol.examples import PictureTerms, changed, picture_side
from tests.target_node.conftest import Target, asking

SCANS = {
    "domain": "scans", "sample_shape": (1, SIZE, SIZE), "size_rule": "resize",
    "picture": PictureTerms(low=0.0, high=255.0, bits=8),
}  # fmt: skip


@pytest.fixture(scope="module")
def relief():
    made = pictures_engine("relief", seed=2)
    yield made
    made.close()


@pytest.fixture
def target(tmp_path, institutions, relief):
    """South's node, which allows rotations."""
    made = Target(
        tmp_path / "south", institutions["south"], relief, domain="relief", calibration='["rotation"]'
    )
    yield made
    made.close()


@pytest.fixture
def signed(institutions):
    return agreed(institutions["north"], institutions["south"])


def negotiate(target: Target, who, terms: common_pb2.CalibrationTerms | None, **side) -> Contract:
    """The contract that a source of scans gets."""
    source = picture_side(institution=who.name, **{**SCANS, **side})
    request = pb.NegotiateContractRequest(protocol=PROTOCOL, source=source, calibration=terms)
    with target.called_by(who) as stub:
        return Contract(asking(stub.NegotiateContract, request).contract)


def test_a_calibration_that_is_held_here_is_agreed_on_and_audited(target, north, signed) -> None:
    """The contract has its terms; without the proposal the same two have another contract."""
    target.node.calibrations.add(signed)
    contract = negotiate(target, north, signed.calibration.terms)
    assert contract.calibration == signed.calibration.terms
    assert negotiate(target, north, None).digest != contract.digest
    lines = audit_rows.lines(target.config.paths.store)
    found = [line for line in lines if "contract_agreed" in line]
    assert f"rotation {signed.sha256.hex()}" in found[0]
    assert signed.sha256.hex() not in found[1]


@pytest.mark.parametrize("change", [{"expires": 1}, {"kind": "tone"}])
def test_terms_that_are_not_those_of_the_signed_calibration_are_refused(target, north, signed, change):
    target.node.calibrations.add(signed)
    with pytest.raises(ContractMismatch):
        negotiate(target, north, changed(signed.calibration.terms, **change))


def test_a_contract_lives_no_longer_than_its_calibration(target, north, signed) -> None:
    """Each call looks again: taken out of use, nothing is decoded under it any more."""
    target.node.calibrations.add(signed)
    contract = negotiate(target, north, signed.calibration.terms)
    target.node.calibrations.deactivate(signed.sha256)
    header = pb.DecodeHeader(
        contract_sha256=contract.digest, request_id="job", items=1,
        solver=common_pb2.SolverSettings(evaluations=8),
    )  # fmt: skip
    with pytest.raises(CalibrationUnknown):
        target.decode(north, pb.DecodeRequest(header=header))
    plain = pb.DecodeHeader(contract_sha256=bytes(32), request_id="job", items=1, solver=header.solver)
    with pytest.raises(ContractUnknown):
        target.decode(north, pb.DecodeRequest(header=plain))


def test_a_model_of_mapped_units_decodes_under_no_calibration(tmp_path, institutions, north, signed) -> None:
    """The map leads to the units that its model had before."""
    mapped = Normalisation(std=0.5, calibrated=ChannelMap(quadratic=((0.0, 1.0, 0.1),)))
    engine = pictures_engine("relief", seed=2, normalisation=mapped)
    target = Target(
        tmp_path / "mapped", institutions["south"], engine, domain="relief", calibration='["rotation"]'
    )
    target.node.calibrations.add(signed)
    try:
        with pytest.raises(CalibrationModel):
            negotiate(target, north, signed.calibration.terms)
        assert negotiate(target, north, None).calibration is None
    finally:
        target.close()
        engine.close()

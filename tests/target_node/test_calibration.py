"""What a target gives a peer for a calibration, and which proposals it signs: real certificates over a real port."""

import contextlib
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from ddib_fed import errors
from ddib_fed.calibration.record import CalibratedSide, Calibration, Making, SignedCalibration
from ddib_fed.files import write_file
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.node.calibrations import CalibrationPeer
from ddib_fed.security import pki
from target_node import service
from tests import audit_rows
from tests.calibration.examples import UNITS, calibration, make_aggregate, sign
from tests.node.tiny_nodes import make_config

PICTURES = np.random.default_rng(0).uniform(-1, 1, (200, 3, 4, 4)).astype(np.float32)
AGGREGATE = make_aggregate(PICTURES, Normalisation(), "moons", generator=np.random.default_rng(1))


def agreed(**changes) -> Calibration:
    """North's proposal, made from what south published."""
    now = datetime.now(UTC)
    made = Making(method="aggregates", source_pictures=200, created=now, **AGGREGATE.making)
    target = CalibratedSide(institution="south.example", domain="moons", units=UNITS)
    return calibration(**{"made": made, "target": target, **changes})


class North:
    """The source's operator, who calls south with north's certificate."""

    def __init__(self, folder, institutions, address: str) -> None:
        self.institutions = institutions
        institutions["north"].admit(institutions["south"], address)
        self.config = make_config(folder, "north.example", "source")

    def calls(self):
        return CalibrationPeer(self.config, "south.example", "moons")

    def signed(self, proposed: Calibration, by: str = "north") -> SignedCalibration:
        own = pki.load_identity(self.institutions[by].pki)
        source = sign(proposed, "source", own, now=datetime.now(UTC))
        return SignedCalibration(calibration=proposed, source=source)

    def propose(self, proposed: SignedCalibration) -> SignedCalibration:
        with self.calls() as south:
            return south.propose(proposed)


@pytest.fixture
def open_pair(tmp_path, institutions, open_target):
    """South's node with a published aggregate, and north; settings are of south's policy."""

    def open_it(kinds: str = '["rotation"]'):
        target = open_target(calibration=kinds)
        write_file(target.config.paths.aggregate, AGGREGATE.canonical)
        return target, North(tmp_path / "north", institutions, target.server.address)

    return open_it


def acts(target) -> list[str]:
    return [record["act"] for record in audit_rows.records(target.config.paths.store)]


def test_a_proposal_is_signed_by_the_operator_and_stored_by_both(open_pair) -> None:
    """The aggregate crosses as it was published, and the answer to the same proposal has both signatures."""
    target, north = open_pair()
    with north.calls() as south:
        assert south.aggregate() == AGGREGATE
    proposal = north.signed(agreed())
    assert not north.propose(proposal).complete
    own = sign(proposal.calibration, "target", pki.load_identity(target.south.pki), now=datetime.now(UTC))
    target.node.calibrations.add(proposal.model_copy(update={"target": own}))
    signed = north.propose(proposal)
    assert signed.complete
    assert target.node.calibrations.find(signed.sha256).target == signed.target
    assert acts(target) == ["aggregate_served", "calibration_proposed"]


def test_one_peer_cannot_fill_the_store_for_another(open_pair, institutions, tmp_path) -> None:
    """What it proposed and what was signed and expired counts against it alone."""
    target, north = open_pair()
    held = 0
    with contextlib.suppress(errors.ExhaustedError):
        for held in range(257):
            target.node.calibrations.add(
                north.signed(agreed(expires=datetime.now(UTC) + timedelta(days=9, seconds=held)))
            )
    with pytest.raises(errors.ExhaustedError):
        north.propose(north.signed(agreed()))
    institutions["west"].admit(institutions["south"], target.server.address)
    config = make_config(tmp_path / "west", "west.example", "source")
    side_ = CalibratedSide(institution="west.example", domain="photos", units=UNITS)
    with CalibrationPeer(config, "south.example", "moons") as south:
        south.propose(north.signed(agreed(source=side_), by="west"))
    assert target.node.calibrations.list()[0].calibration.source == side_
    assert held == 32


OTHER = "0" * 64


def side(
    institution: str = "south.example", domain: str = "moons", units: Normalisation = UNITS
) -> CalibratedSide:
    return CalibratedSide(institution=institution, domain=domain, units=units)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"target": side(domain="maps")}, errors.CalibrationForeign),
        ({"target": side(units=Normalisation(std=0.3))}, errors.CalibrationUnits),
        ({"kind": "tone", "map": ChannelMap(quadratic=((0, 1, 0),))}, errors.CalibrationKindDenied),
        ({"expires": datetime.now(UTC) + timedelta(days=800)}, errors.CalibrationInvalid),
        ({"made": agreed().made.model_copy(update={"aggregate_sha256": OTHER})}, errors.CalibrationInvalid),
        ({"made": agreed().made.model_copy(update={"epsilon": 0.1})}, errors.CalibrationInvalid),
    ],
)
def test_a_proposal_that_is_not_for_this_node_is_refused(open_pair, changes, error) -> None:
    """Another domain, institution, model, kind, aggregate or privacy, or without an end."""
    target, north = open_pair()
    with pytest.raises(error) as refused:
        north.propose(north.signed(agreed(**changes)))
    assert refused.value.hop == "target south.example"
    assert acts(target) == ["calibration_refused"]
    assert target.node.calibrations.list() == ()


def test_units_are_told_only_where_a_calibration_is_allowed(open_pair) -> None:
    """They are not noised; nothing of the service is answered without."""
    target, north = open_pair("[]")
    with north.calls() as south:
        for ask in (south.aggregate, south.units):
            with pytest.raises(errors.PolicyDenied) as refused:
                ask()
            assert "[policy] calibration" in refused.value.hint
    assert acts(target) == []


def test_a_peer_may_ask_only_so_often(open_pair, monkeypatch) -> None:
    monkeypatch.setattr(service, "MAX_WAITING", 1)
    _, north = open_pair()
    north.propose(north.signed(agreed()))
    with pytest.raises(errors.QuotaSpent):
        north.propose(north.signed(agreed(expires=datetime.now(UTC) + timedelta(days=9))))
    monkeypatch.setattr(service, "CALLS_PER_DAY", 3)
    with north.calls() as south:
        south.units()
        with pytest.raises(errors.QuotaSpent):
            south.units()


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        AGGREGATE.canonical.replace(b'"moons"', b'"maps"'),
        AGGREGATE.canonical.replace(b'"epsilon":1,', b'"epsilon":0.5,'),
    ],
)
def test_an_aggregate_that_is_not_what_it_says_is_not_used(open_pair, monkeypatch, content) -> None:
    """None at all, not canonical, of another domain, or with less noise than its epsilon demands."""
    _, north = open_pair()
    forged = SimpleNamespace(canonical=content, sha256=bytes(32), epsilon=1.0, delta=1e-5)
    monkeypatch.setattr(service, "served_aggregate", lambda *_: forged)
    with north.calls() as south, pytest.raises(errors.PeerFault) as refused:
        south.aggregate()
    assert refused.value.hop == "target south.example"

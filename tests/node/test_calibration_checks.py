"""Which calibrations a node uses: each refusal has its own error."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ddib_fed.calibration.record import SignedCalibration
from ddib_fed.errors import (
    CalibrationExpired,
    CalibrationForeign,
    CalibrationKindDenied,
    CalibrationSigner,
    CalibrationUnits,
    CalibrationUnknown,
    CalibrationUnsigned,
)
from ddib_fed.node.calibrations import check_terms, overview, usable_calibration
from ddib_fed.node.config import PolicySection
from ddib_fed.node.role import NodeContext
from ddib_fed.security import pki
from tests.calibration.examples import UNITS, calibration, sign
from tests.node.tiny_nodes import make_config, make_context, make_institution, tiny_engine

NORTH, SOUTH = ("north.example", "photos"), ("south.example", "maps")
ALLOWED = PolicySection(calibration=("rotation",))


@pytest.fixture
def node(tmp_path):
    """South's, which admits north, and both sign; `.signed` is what they agreed on."""
    north, south = (make_institution(tmp_path / name, f"{name}.example") for name in ("north", "south"))
    south.admit(north)
    engine = tiny_engine()
    made = make_context(
        make_config(tmp_path / "south", south.name, "target", calibration='["rotation"]'), south, engine
    )
    agreed, now = calibration(), datetime.now(UTC)
    signed = SignedCalibration(
        calibration=agreed,
        source=sign(agreed, "source", pki.load_identity(north.pki), now=now),
        target=sign(agreed, "target", pki.load_identity(south.pki), now=now),
    )
    yield made, signed
    engine.close()


def use(node: NodeContext, signed: SignedCalibration, **changes):
    return usable_calibration(
        node, signed.sha256, **{"source": NORTH, "target": SOUTH, "side": "target", **changes}
    )


def test_an_agreed_calibration_is_used_until_it_is_taken_out_of_use(node) -> None:
    """Unknown before it is stored, and after the operator removed it."""
    context, signed = node
    with pytest.raises(CalibrationUnknown, match="is not stored here"):
        use(context, signed)
    context.calibrations.add(signed)
    assert use(context, signed) == signed.calibration
    context.calibrations.deactivate(signed.sha256)
    with pytest.raises(CalibrationUnknown, match="taken out of use"):
        use(context, signed)


def test_a_calibration_is_not_used_when_its_conditions_have_ended(node) -> None:
    context, signed = node
    context.calibrations.add(signed)
    with pytest.raises(CalibrationExpired):
        use(context, signed, now=signed.calibration.expires)
    context.calibrations.add(signed.model_copy(update={"target": None}))
    with pytest.raises(CalibrationUnsigned):
        use(context, signed)
    context.calibrations.add(signed)
    context.peers.remove("north.example")
    with pytest.raises(CalibrationSigner, match=r"north\.example has not been admitted"):
        use(context, signed)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"source": ("west.example", "photos")}, CalibrationForeign, r"not from west\.example/photos"),
        ({"target": ("south.example", "drawings")}, CalibrationForeign, "south.example/drawings"),
        ({"units": "0" * 64}, CalibrationUnits, "now has 000000000000"),
        ({"policy": PolicySection()}, CalibrationKindDenied, "allows none"),
        ({"policy": PolicySection(calibration=("tone",))}, CalibrationKindDenied, "allows tone"),
    ],
)
def test_terms_that_differ_are_refused(changes, error, says) -> None:
    terms = {"source": NORTH, "target": SOUTH, "units": UNITS, "policy": ALLOWED} | changes
    places = terms["source"], terms["target"]
    check_terms(calibration(), (NORTH, SOUTH), "target", UNITS, ALLOWED)
    with pytest.raises(error, match=says) as refused:
        check_terms(calibration(), places, "target", terms["units"], terms["policy"])
    assert refused.value.hint


def test_the_operator_sees_what_to_do_about_each_calibration(node) -> None:
    context, signed = node
    config, store, peers = context.config, context.calibrations, context.peers
    ends = signed.calibration.expires

    def seen(now: datetime | None = None) -> tuple[str, str]:
        (found,) = overview(config, store, peers, now)
        return found.state, found.warning

    assert overview(config, store, peers) == []
    store.add(signed)
    assert seen() == ("active", "")
    assert seen(ends - timedelta(days=13, hours=12)) == ("active", f"it ends at {ends:%Y-%m-%d}, in 13 days")
    assert seen(ends)[0] == "expired"
    peers.remove("north.example")
    assert seen()[0] == "refused"
    store.add(signed.model_copy(update={"target": None}))
    assert seen() == (
        "proposed",
        f"it waits for you: ddib calibrate accept {signed.sha256.hex()[:12]}",
    )
    store.deactivate(signed.sha256)
    assert overview(config, store, peers) == []

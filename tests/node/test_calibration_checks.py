"""Which calibrations a node uses: each refusal has its own error."""

from datetime import datetime, timedelta

import pytest

from ddib_fed.calibration.record import SignedCalibration
from ddib_fed.node.calibrations import overview, usable_calibration
from ddib_fed.node.role import NodeContext
from tests.calibration.examples import calibration, signed
from tests.node.tiny_nodes import make_config, make_context, make_institution

NORTH, SOUTH = ("north.example", "photos"), ("south.example", "maps")


@pytest.fixture
def node(tmp_path, engine):
    """South's, which admits north, and both sign; `.signed` is what they agreed on."""
    north, south = (make_institution(tmp_path / name, f"{name}.example") for name in ("north", "south"))
    south.admit(north)
    made = make_context(
        make_config(tmp_path / "south", south.name, "target", calibration='["rotation"]'), south, engine
    )
    yield made, signed(calibration(), north, south)
    made.audit.store.close()


def use(node: NodeContext, held: SignedCalibration, **changes):
    return usable_calibration(
        node, held.sha256, **{"source": NORTH, "target": SOUTH, "side": "target", **changes}
    )


def test_the_operator_sees_what_to_do_about_each_calibration(node) -> None:
    context, held = node
    config, store, peers = context.config, context.calibrations, context.peers
    ends = held.calibration.expires

    def seen(now: datetime | None = None) -> tuple[str, str]:
        (found,) = overview(config, store, peers, now)
        return found.state, found.warning

    assert overview(config, store, peers) == []
    store.add(held)
    assert seen() == ("active", "")
    assert seen(ends - timedelta(days=13, hours=12)) == ("active", f"it ends at {ends:%Y-%m-%d}, in 13 days")
    assert seen(ends)[0] == "expired"
    peers.remove("north.example")
    assert seen()[0] == "refused"
    store.add(held.model_copy(update={"target": None}))
    assert seen() == ("proposed", f"it waits for you: ddib calibrate accept {held.sha256.hex()[:12]}")
    store.deactivate(held.sha256)
    assert overview(config, store, peers) == []

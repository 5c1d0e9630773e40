"""What solver settings need of the protocol."""

import pytest

from ddib_fed.wire.jobs import Settings
from ddib_fed.wire.version import CALIBRATION, ECONOMY, OLDEST, PICTURES


@pytest.mark.parametrize(
    ("settings", "needed", "named"),
    [
        (Settings(), OLDEST, []),
        (Settings(solver="ddim", grid="karras", evaluations=4), OLDEST, []),
        (Settings(depth=0.6), PICTURES, ["depth 0.6"]),
        (Settings(depth=0.6, encoder="mixed"), CALIBRATION, ["depth 0.6", "encoder mixed"]),
        (Settings(grid="learned"), ECONOMY, ["grid learned"]),
        (Settings(solver="flow-map", encoder="linear"), ECONOMY, ["encoder linear", "solver flow-map"]),
    ],
)
def test_settings_need_the_version_of_their_latest_name(settings, needed, named):
    """And name what each is, for the error of a peer that is too old."""
    assert settings.needs == needed
    assert [what for what, _ in settings.later()] == named

"""What solver settings need of the protocol."""

import pytest

from ddib_fed.errors import SettingsInvalid
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
        (Settings(solver="flow-map", encoder="mixed"), ECONOMY, ["encoder mixed", "solver flow-map"]),
    ],
)
def test_settings_need_the_version_of_their_latest_name(settings, needed, named):
    """And name what each is, for the error of a peer that is too old."""
    assert settings.needs == needed
    assert [what for what, _ in settings.later()] == named


def test_a_quality_is_one_of_three_settings():
    """Depth and encoder stay as they were asked; what the quality chooses may not be set beside it."""
    asked = Settings(depth=0.5)
    assert asked.of_quality(None) is asked
    assert asked.of_quality("draft") == Settings(evaluations=12, grid="learned", depth=0.5)
    assert asked.of_quality("standard") == asked
    assert asked.of_quality("exact").evaluations == 96
    with pytest.raises(SettingsInvalid, match="no quality 'best'"):
        asked.of_quality("best")
    with pytest.raises(SettingsInvalid, match="chooses grid itself") as refused:
        Settings(grid="karras").of_quality("exact")
    assert refused.value.hint == "leave --grid or --quality out"

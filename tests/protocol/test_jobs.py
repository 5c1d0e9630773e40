"""Qualities of translations."""

import pytest

from ddib_fed.errors import SettingsInvalid
from ddib_fed.protocol.messages import Settings


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

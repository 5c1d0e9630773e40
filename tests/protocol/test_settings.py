"""What the wire does not carry is refused on the way to it; it is never dropped."""

from __future__ import annotations

import pytest

from ddib_fed.diffusion.grids import PublicLevels
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import SettingsInvalid
from ddib_fed.node.role import settings_message, solver_settings

IN_ONE_PROCESS = [
    SolverSettings("ddim", eta=0.5),
    SolverSettings("ddim", grid="ddib", ancestral=True),
    SolverSettings("ddim", grid="ddib", levels=PublicLevels("linear", 1000, "ddim50")),
]


@pytest.mark.parametrize("settings", IN_ONE_PROCESS, ids=str)
def test_what_the_wire_does_not_carry_is_not_dropped_in_silence(settings):
    """A message of the other five would ask the peer for something else."""
    with pytest.raises(SettingsInvalid, match="do not travel"):
        settings_message(settings)


def test_all_settings_cross_the_wire():
    for settings in (SolverSettings("ddim", 1, 50, "ddib"), SolverSettings(encoder="mixed")):
        assert solver_settings(settings_message(settings)) == settings

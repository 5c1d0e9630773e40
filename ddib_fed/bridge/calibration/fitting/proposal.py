"""What fitting a calibration gives: its map, and what is known of the map's effect."""

from __future__ import annotations

from dataclasses import dataclass

from ddib_fed.bridge.calibration.record import Effect
from ddib_fed.models.units.channel_map import ChannelMap


@dataclass(frozen=True, slots=True)
class Proposal:
    """One proposal.

    Attributes:
        map: From the source's model units to the target's.
        effect: Its figures.
    """

    map: ChannelMap
    effect: Effect

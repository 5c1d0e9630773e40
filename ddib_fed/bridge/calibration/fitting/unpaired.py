"""Proposes a calibration from the source's own pictures and the aggregate that the target published; no pairs.

The aggregate is cleaned (`clouds`), the rotation searched (`rotation`), for a colour map fitted on (`colour_map`), and
the result judged (`evaluation`, `judgement`). The source's pictures stay where they are.
"""

from __future__ import annotations

import numpy as np

from ddib_fed.bridge.calibration.aggregates import Aggregate, Floats, Numbers, thinned
from ddib_fed.bridge.calibration.fitting.clouds import cleaned, drawn, own
from ddib_fed.bridge.calibration.fitting.colour_map import fit_colour_map
from ddib_fed.bridge.calibration.fitting.evaluation import effect_of
from ddib_fed.bridge.calibration.fitting.proposal import Proposal
from ddib_fed.bridge.calibration.fitting.rotation import as_map, search
from ddib_fed.bridge.calibration.judgement import judged
from ddib_fed.bridge.calibration.record import Kind
from ddib_fed.errors import InputError
from ddib_fed.models.units.normalisation import Normalisation

FEWEST_PICTURES = 20
MOST_PICTURES, EACH = 1000, 24
"""Pictures of the source that are used, evenly spaced, and pixels of each."""
DRAWN = 24_000
"""Pseudo-colours of the target."""


def propose(
    pictures: Floats,
    normalisation: Normalisation,
    aggregate: Aggregate,
    kind: Kind,
    *,
    seed: int = 0,
    force: bool = False,
) -> Proposal:
    """The map of this kind from the source's units to the target's, with its figures.

    Args:
        pictures: Of the source, (N, C, H, W) in [-1, 1].
        normalisation: Of the source's model; a calibration that it has is left out.
        aggregate: What the target published.
        kind: rotation or colour-map.
        seed: Of draws and starts: the same seed gives the same map.
        force: Give it although its figures are refused; the effect says so.

    Raises:
        InputError: There are fewer than 20 pictures, channels differ from the aggregate's, or the kind is for other
            channels or needs anchors.
        CalibrationIneffective: It is not better than none, or another optimum is nearly as good.
        ExtraMissing: A colour map needs POT, and it is not installed.
    """
    _check(pictures, aggregate, kind)
    generator = np.random.default_rng(seed)
    units = normalisation.plain.apply(thinned(pictures, MOST_PICTURES))
    colours = own(units, EACH, generator)
    target = drawn(cleaned(aggregate), aggregate.cells, DRAWN, generator)
    cloud: Numbers = generator.permutation(colours.reshape(-1, colours.shape[2]))
    found = search(cloud, target, seed=seed)
    mapped = (
        as_map(found.best.matrix) if kind == "rotation" else fit_colour_map(cloud, target, found.best.matrix)
    )
    effect = effect_of(found, mapped, colours, target, seed=seed)
    return Proposal(mapped, judged(effect, force=force))


def _check(pictures: Floats, aggregate: Aggregate, kind: Kind) -> None:
    channels = aggregate.cells.channels
    if pictures.ndim != 4 or len(pictures) < FEWEST_PICTURES:
        raise InputError(
            f"a calibration is fitted on at least {FEWEST_PICTURES} pictures, not on an array of {pictures.shape}",
            hint="add pictures, or calibrate from anchors",
        )
    if pictures.shape[1] != channels:
        raise InputError(
            f"the aggregate of {aggregate.domain} is of {channels} channels, the pictures have {pictures.shape[1]}",
            hint="both models must be of one number of channels",
        )
    if kind == "tone":
        raise InputError(
            "a tone curve is fitted from anchors: nothing in a histogram of grey tells a contrast from its negative",
            hint="ddib calibrate --kind tone --anchors A_DIR B_DIR",
        )
    if kind == "colour-map" and channels != 3:
        raise InputError(
            "a colour map is for pictures of 3 channels", hint="--kind tone --anchors is for grey pictures"
        )

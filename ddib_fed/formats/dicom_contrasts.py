"""Tells the contrasts of a DICOM series apart, and its slices of anatomy from pictures of another kind.

The rule: what one rule of intensity is for has one contrast. Names have numbers alone, and no value of a header.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

Members = list[tuple[Path, Any]]
"""Path and header (`SORTED_BY`) of each slice of a series; slices that are frames of one file share its path."""
_CONTRASTS: Final = {
    "echo": ("EchoTime", "EffectiveEchoTime", "EchoNumbers"),
    "b": ("DiffusionBValue",),
    "inversion": ("InversionTime",),
    "time": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "type": ("ImageType", "FrameType"),
}
"""Attributes whose values tell the contrasts of a series apart, by what a contrast is called."""
_MAGNITUDES_ALONE: Final = "phase, real or imaginary picture"
_NO_ANATOMY: Final = {
    "localizer": {"LOCALIZER", "SCOUT", "TOPOGRAM"},
    "mosaic of slices": {"MOSAIC"},
    _MAGNITUDES_ALONE: {
        "P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP", "R", "REAL", "I", "IMAGINARY",
    },
}  # fmt: skip
"""Types of pictures, by their third and further values, that are no slices of anatomy; the last of MR alone."""


def no_anatomy(header: Any) -> str:
    """What a picture is by its type that shows no slice of anatomy, in words; empty for a slice."""
    modality, types = header.get("Modality"), ("FrameType" if "FrameType" in header else "ImageType")
    words = {text.upper() for _, text in _comparable(header, types)[2:]}
    words.add(str(header.get("ComplexImageComponent")))
    for what, known in _NO_ANATOMY.items():
        if words & known and (modality == "MR" or what != _MAGNITUDES_ALONE):
            return f"DICOM {what}"
    colours = modality in {"CT", "MR", "PT"} and header.get("SamplesPerPixel") == 3
    return "DICOM colour map" if colours else ""


def contrasts_of(members: Members) -> dict[str, Members]:
    """The slices of a series by their contrast, such as `echo2-type1`; the only one has no name.

    Contrasts are numbered by their values, and slices of one contrast that lie at one place by when they were acquired.
    """
    ranks = []
    for keywords in _CONTRASTS.values():
        values = [tuple(_comparable(header, keyword) for keyword in keywords) for _, header in members]
        order = sorted(set(values))
        ranks.append([order.index(value) + 1 if len(order) > 1 else 0 for value in values])
    parts: dict[str, Members] = {}
    for member, *numbers in zip(members, *ranks, strict=True):
        name = "-".join(f"{what}{n}" for what, n in zip(_CONTRASTS, numbers, strict=True) if n)
        parts.setdefault(name, []).append(member)
    found: dict[str, Members] = {}
    for name, slices in sorted(parts.items()):
        repeats = _repeats(slices)
        for number, each in enumerate(repeats, 1):
            found["-".join(filter(None, (name, f"repeat{number}" * (len(repeats) > 1))))] = each
    return found


def _repeats(members: Members) -> list[Members]:
    """The slices that were acquired first at each place, those that were second, and so on."""

    def acquired(member: tuple[Path, Any]) -> tuple[Any, ...]:
        when = ("TriggerTime", "AcquisitionDate", "AcquisitionTime", "InstanceNumber")
        return *(_comparable(member[1], keyword) for keyword in when), str(member[0])

    places: dict[Any, Members] = {}
    for path, header in sorted(members, key=acquired):
        place = tuple(_comparable(header, f"Image{part}Patient") for part in ("Position", "Orientation"))
        alone = header.get("ImagePositionPatient") is None
        places.setdefault(len(places) if alone else place, []).append((path, header))
    if len(places) == len(members):
        return [members]
    return [[member for member in each if member] for each in zip_longest(*places.values())]


def _comparable(header: Any, keyword: str) -> tuple[tuple[float, str], ...]:
    """The values of an attribute, which can be sorted; none where there are none, or no valid ones."""
    with suppress(TypeError, ValueError, OverflowError):
        found = header.get(keyword)
        values = found if isinstance(found, MutableSequence) else [found]
        kept = [value for value in values if value not in {None, ""}]
        return tuple((0.0, v.strip()) if isinstance(v, str) else (round(float(v), 3), "") for v in kept)
    return ()

"""Tells the contrasts of a DICOM series apart, and its slices of anatomy from pictures of another kind.

The rule: what one rule of intensity is for has one contrast. Names have numbers alone, and no value of a header.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableSequence, Sequence
from contextlib import suppress
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
    "screen or protocol": {"SCREEN SAVE", "CT_SOM5 PROT"},
    _MAGNITUDES_ALONE: {"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP", "R", "REAL", "I", "IMAGINARY"},
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
    columns: list[Sequence[Any]] = [
        [tuple(_comparable(header, keyword) for keyword in keywords) for _, header in members]
        for keywords in _CONTRASTS.values()
    ]
    columns.append(_repeats(members, [*zip(*columns, strict=True)]))
    named = []
    for what, column in zip((*_CONTRASTS, "repeat"), columns, strict=True):
        numbers = {value: number for number, value in enumerate(sorted(set(column)), 1)}
        named.append([f"{what}{numbers[value]}" if len(numbers) > 1 else "" for value in column])
    parts: dict[str, Members] = {}
    for member, *names in zip(members, *named, strict=True):
        parts.setdefault("-".join(filter(None, names)), []).append(member)
    return {name: parts[name] for name in sorted(parts, key=lambda each: (len(each), each))}


def _repeats(members: Members, contrasts: Sequence[Any]) -> list[int]:
    """How many slices of its contrast were acquired at the place of each before it."""

    def acquired(at: int) -> tuple[Any, ...]:
        path, header = members[at]
        when = ("TriggerTime", "AcquisitionDate", "AcquisitionTime", "InstanceNumber")
        return *(_comparable(header, keyword) for keyword in when), str(path)

    seen, found = Counter[Any](), [0] * len(members)
    for at in sorted(range(len(members)), key=acquired):
        header = members[at][1]
        place = _comparable(header, "ImagePositionPatient"), _comparable(header, "ImageOrientationPatient")
        if place[0]:
            found[at] = seen[contrasts[at], place]
            seen[contrasts[at], place] += 1
    return found


def _comparable(header: Any, keyword: str) -> tuple[tuple[float, str], ...]:
    """The values of an attribute, which can be sorted; none where there are none, or no valid ones."""
    with suppress(TypeError, ValueError, OverflowError):
        found = header.get(keyword)
        values = found if isinstance(found, MutableSequence) else [found]
        kept = [value for value in values if value not in {None, ""}]
        return tuple((0.0, v.strip()) if isinstance(v, str) else (round(float(v), 3), "") for v in kept)
    return ()

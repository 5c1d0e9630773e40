"""Tells files of points from files of pictures.

A .npy is classified by its header alone; for an ambiguous one the model's kind decides.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Final

from ddib_fed.errors import DdibError, ImageTooLarge, KindMismatch, PictureMisfit, PointsUnreadable
from ddib_fed.samples.points import MAGIC, Header, read_header
from ddib_fed.samples.units import name_misfit

MANY_ROWS: Final = 16
FEW_COLUMNS: Final = 4
"""Fewer columns than any picture of at least `MANY_ROWS` rows."""
SOME_COLUMNS: Final = 16
"""Floats in so few columns and `MANY_ROWS` times as many rows are points, too."""


def refuse_points(content: bytes) -> None:
    """Return if a file expected to be a picture is not a .npy of points (N, D)."""
    header = _header(content)
    if header is None or len(header.shape) != 2:
        return
    rows, columns = header.shape
    narrow = columns <= FEW_COLUMNS and rows >= MANY_ROWS
    floats = header.dtype.kind == "f" and columns <= SOME_COLUMNS and rows >= MANY_ROWS * columns
    if columns and (narrow or floats):
        raise _mismatch(f"points, {rows} x {columns}", "pictures")


def refuse_picture(content: bytes, dim: int | None = None) -> None:
    """Return if a .npy expected to be points (N, D) is not a picture."""
    header = _header(content)
    if header is None:
        return
    shape = header.shape
    planes = len(shape) == 3 and (shape[2] in {1, 3, 4} or shape[0] in {1, 3})
    plane = (
        len(shape) == 2
        and header.dtype.kind == "u"
        and FEW_COLUMNS < shape[1] != dim
        and shape[0] < MANY_ROWS * shape[1]
    )
    if planes or plane:
        size = " x ".join(map(str, shape))[:60]
        raise _mismatch(f"a picture, {size}", f"points (N, {dim or 'D'})")


def picture_for_points(what: str, dim: int) -> KindMismatch:
    return _mismatch(f"a picture ({what})", f"points (N, {dim})")


def explain_kind(facts: Mapping[str, str], name: str = "the file") -> tuple[str, str]:
    """The problem with a file and its remedy, from the facts of a `KindMismatch`, also one read from the wire."""
    if "holds" not in facts or "takes" not in facts:
        return "", ""
    detail = f"{name} holds {facts['holds']}; {facts.get('model', 'the model')} takes {facts['takes']}"
    if facts["takes"] == "pictures":
        return detail, "`ddib domains` lists who takes points; a picture of this shape is saved as (H, W, 1)"
    return detail, "`ddib domains` lists who takes pictures; a .npy of points is (N, D)"


def name_file(error: DdibError, name: str) -> DdibError:
    """The same error for a file of this name; its text is written again with the name."""
    if isinstance(error, PictureMisfit):
        return name_misfit(error, name)
    if isinstance(error, KindMismatch) and (explained := explain_kind(error.facts, name))[0]:
        return KindMismatch(explained[0], hint=explained[1], facts=error.facts)
    if isinstance(error, ImageTooLarge) and "limit_pixels" in error.facts:
        return _too_many_pixels(error, name)
    if name not in error.detail:
        error.detail = f"{name}: {error.detail}"
        error.args = (error.detail,)
    return error


def _too_many_pixels(error: ImageTooLarge, name: str) -> ImageTooLarge:
    pixels, limit = (str(error.facts.get(key, "")) for key in ("pixels", "limit_pixels"))
    if not (
        pixels.isdecimal() and limit.isdecimal()
    ):  # text from the wire is not put into a command unchecked
        return error
    path = PurePath(name)
    smaller, most = path.with_name(f"{path.stem}-smaller.png"), shlex.quote(f"{limit}@>")
    return ImageTooLarge(
        f"{name} has {int(pixels):,} pixels, {int(limit):,} are the limit",
        hint=f"magick {shlex.quote(name)} -resize {most} {shlex.quote(str(smaller))}   (or -crop it); the limit of "
        "a node is [limits] max_pixels in its node.toml",
        facts=error.facts,
        hop=error.hop,
    )


def _mismatch(holds: str, takes: str) -> KindMismatch:
    facts = {"holds": holds, "takes": takes}
    detail, hint = explain_kind(facts)
    return KindMismatch(detail, hint=hint, facts=facts)


def _header(content: bytes) -> Header | None:
    """The header of a .npy; None for anything else, and for a header that the decoder will refuse."""
    if content[:6] != MAGIC:
        return None
    try:
        return read_header(content)[0]
    except PointsUnreadable:
        return None

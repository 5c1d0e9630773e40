"""Turns the records beside translations, of `ddib bridge` or of `ddib translate`, into one form.

The rule: a record was written by a program, perhaps another release of it: what it lacks, or has as something else,
counts as not known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OTHER_FILES = ("_back.png", "_uncertainty.png", "_latent.npy")


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one translation.

    Attributes:
        translated: Its file.
        source: The source's file, where it lies beside.
        back: The source that came back.
        latent: The latent, .npy.
        cycle_mse: Of source and back, in [-1, 1].
        cycle_psnr: The same in dB.
        edge_correlation: Of source and translation.
        mutual_information: Of source and translation, in bits.
        doubtful: Whether the translation was marked.
        latent_mean: Of the latent's numbers.
        latent_std: Of the latent's numbers.
        latent_kurtosis: Of the latent's numbers.
        latent_correlation: Of two pixels of a patch.
        output_scale: Slope and intercept: raw = slope * number in the file + intercept.
        back_scale: The same for the source that came back; None where the record does not say.
        source_range: Raw values that are -1 and 1 to the source's model; None where the record does not say.
        target_range: The same of the target's model.
    """

    translated: Path
    source: Path | None = None
    back: Path | None = None
    latent: Path | None = None
    cycle_mse: float | None = None
    cycle_psnr: float | None = None
    edge_correlation: float | None = None
    mutual_information: float | None = None
    doubtful: bool | None = None
    latent_mean: float | None = None
    latent_std: float | None = None
    latent_kurtosis: float | None = None
    latent_correlation: float | None = None
    output_scale: tuple[float, float] = (1.0, 0.0)
    back_scale: tuple[float, float] | None = None
    source_range: tuple[float, float] | None = None
    target_range: tuple[float, float] | None = None


def read(path: Path, folder: Path) -> Record | None:
    """The record in a file, whose paths are below a folder; None when it is of no translation that is there."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(raw, Mapping):
        return None
    if isinstance(raw.get("picture"), Mapping):
        return _of_the_nodes(raw, path.parent)
    return _of_a_bridge(raw, folder)


def _of_a_bridge(raw: Mapping[str, Any], folder: Path) -> Record | None:
    """A record that `ddib bridge` wrote."""
    translated = _file(folder, raw.get("translated"))
    if translated is None:
        return None
    structure, latent, scale = (_part(raw, key) for key in ("structure", "latent", "output_scale"))
    written = [str(name) for name in _part(raw, "files")]
    latents = [name for name in written if name.endswith("_latent.npy")]
    # `source` is a path below a folder that the record does not know; a copy is among the files that were written.
    rest = [name for name in written if name != raw["translated"] and not name.endswith(_OTHER_FILES)]
    return Record(
        translated,
        source=_file(folder, rest[0]) if rest else None,
        back=_file(folder, raw.get("back")),
        latent=_file(folder, latents[0]) if latents else None,
        cycle_mse=_number(raw, "cycle_mse"),
        cycle_psnr=_number(raw, "cycle_psnr"),
        edge_correlation=_number(structure, "edge_correlation"),
        mutual_information=_number(structure, "mutual_information"),
        doubtful=_mark(structure),
        output_scale=_scale(scale),
        back_scale=_scale(back_scale) if (back_scale := _part(raw, "back_scale")) else None,
        source_range=_range(_part(raw, "ranges").get("source")),
        target_range=_range(_part(raw, "ranges").get("target")),
        **_latent(latent),
    )


def _of_the_nodes(raw: Mapping[str, Any], folder: Path) -> Record | None:
    """A record that `ddib translate` wrote."""
    files, picture = _part(raw, "files"), _part(raw, "picture")
    translated = _file(folder, _part(files, "translation").get("file"))
    if translated is None:
        return None
    return Record(
        translated,
        back=_file(folder, _part(files, "returned").get("file")),
        latent=_file(folder, _part(files, "latent").get("file")),
        cycle_mse=_number(picture, "cycle_mse"),
        cycle_psnr=_number(picture, "cycle_psnr"),
        edge_correlation=_number(picture, "edge_correlation"),
        mutual_information=_number(picture, "mutual_information"),
        doubtful=_mark(raw),
        output_scale=_scale(picture),
        target_range=_range([picture.get("low"), picture.get("high")]),
        **_latent(_part(raw, "latent")),
    )


def _latent(part: Mapping[str, Any]) -> dict[str, Any]:
    return {f"latent_{key}": _number(part, key) for key in ("mean", "std", "kurtosis", "correlation")}


def _scale(part: Mapping[str, Any]) -> tuple[float, float]:
    return _number(part, "slope") or 1.0, _number(part, "intercept") or 0.0


def _range(said: object) -> tuple[float, float] | None:
    if not isinstance(said, list) or len(said) != 2:
        return None
    low, high = (_number({"end": end}, "end") for end in said)
    return (low, high) if low is not None and high is not None and low < high else None


def _mark(part: Mapping[str, Any]) -> bool | None:
    mark = part.get("doubtful")
    return mark if isinstance(mark, bool) else None


def _number(part: Mapping[str, Any], key: str) -> float | None:
    value = part.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known and value is not None else None


def _part(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = raw.get(key)
    return part if isinstance(part, Mapping) else {}


def _file(folder: Path, name: object) -> Path | None:
    """A file below the folder; a record cannot name one elsewhere."""
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    path = folder / name
    return path if path.is_file() else None

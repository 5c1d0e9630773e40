"""Reads from the transforms of a MONAI bundle how values of files become the network's numbers.

Linear maps and percentiles are read. Any other transform of the samples' values is refused by its name, unless the
command says the rule: a model whose black and white are not known gives wrong pictures without an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.import_guided import Fact
from ddib_fed.models.import_latents import Read, Told
from ddib_fed.models.manifest import intensity_fields
from ddib_fed.models.monai_configs import Configs, Found, takes_a_part
from ddib_fed.models.units import Normalisation

SCALING: Final = frozenset({
    "ScaleIntensityRange", "ScaleIntensityRangePercentiles", "ScaleIntensity", "NormalizeIntensity",
})  # fmt: skip
KEEPING: Final = frozenset({
    "LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "AsChannelLast", "Transpose", "SqueezeDim",
    "EnsureType", "CastToType", "ToTensor", "ToNumpy", "ToCupy", "ToDevice", "Identity", "DataStats", "CopyItems",
    "SelectItems", "DeleteItems", "SplitDim", "RepeatChannel", "RemoveRepeatedChannel", "Orientation", "Spacing",
    "SpatialResample", "ResampleToMatch", "Resize", "Flip", "Rotate", "Rotate90", "Zoom", "Affine", "Pad",
    "SpatialPad", "BorderPad", "DivisiblePad", "Crop", "SpatialCrop", "CenterSpatialCrop", "CenterScaleCrop",
    "CropForeground", "ResizeWithPadOrCrop", "BoundingRect", "FlattenSubKeys", "SaveImage", "Invert", "Activations",
    "AsDiscrete",
})  # fmt: skip
"""Transforms that change no value, or only the network's answer; random ones change none on the average."""
MODALITIES: Final = {
    "unknown": 0, "ct": 1, "ct_wo_contrast": 2, "ct_contrast": 3, "mri": 8, "mri_t1": 9, "mri_t2": 10, "mri_flair": 11,
    "mri_pd": 12, "mri_dwi": 13, "mri_adc": 14, "mri_ssfp": 15, "mri_mra": 16,
}  # fmt: skip
"""MAISI's own; a modality_mapping.json in the folder goes before."""
_KIND = re.compile(r"(?:^|[-_.])(ct|mr)i?(?:[-_.]|$)")
"""CT or MR in the name of a file of MAISI, such as diff_unet_3d_rflow-ct.pt."""
_RULE_HINT = (
    "--intensity RULE, and --range LOW:HIGH, say how values became the network's, as nearly as a rule can"
)


class Scaled(NamedTuple):
    """What becomes black and white, values or percentiles of a file, and the network's numbers of these by channel."""

    black: float
    white: float
    ends: tuple[tuple[float, float], ...]
    percentiles: bool = False
    clipped: bool = True

    def moved(self, slopes: list[float], offsets: list[float]) -> Scaled:
        """The same, with the network's numbers times slopes plus offsets: of all channels, or of each."""
        ends = self.ends * len(slopes) if len(self.ends) == 1 else self.ends
        found = zip(ends, slopes, offsets, strict=True)
        return self._replace(ends=tuple((low * a + b, high * a + b) for (low, high), a, b in found))

    def fields(self) -> dict[str, Any]:
        """Fields of a `PictureFormat`; none for the values of 8 bits."""
        if self.percentiles:
            rule = f"percentile:{self.black:g},{self.white:g}@0:65535"
            return {"low": 0.0, "high": 65535.0, "bits": 16, "intensity": rule}
        if (self.black, self.white) == (0.0, 255.0):
            return {}
        return {"low": self.black, "high": self.white, "bits": 16, "intensity": "values"}


MAISI: Final = {
    "ct": Scaled(-1000.0, 1000.0, ((0.0, 1.0),)),
    "mr": Scaled(0.0, 99.5, ((0.0, 1.0),), True, False),
}
"""Of the training of MAISI's networks (scripts/transforms.py): Hounsfield units, and percentiles."""


def units_of(
    configs: Configs, given: Told, facts: list[Fact], read: Read
) -> tuple[Normalisation, dict[str, Any]]:
    """Units of the network's samples; fields of a `PictureFormat` that say how values in files become samples."""
    found, basis = None, ""
    try:
        found, basis = _of_transforms(configs, given, read.network.dims)
    except SettingsInvalid:
        if given.intensity is None:
            raise
    form = {} if found is None else found.fields()
    if found is None and read.network.name.endswith("Maisi") and (kind := _maisi_kind(read, given)):
        found, basis = MAISI[kind], f"MAISI's training on {kind.upper()}"
        form = found.fields() | ({"intensity": "hu"} if kind == "ct" else {})
    ends: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    said = "assumed, as MONAI's; --range LOW:HIGH says another"
    if found is not None:
        ends, said = found.ends, basis
        basis += "" if found.clipped else "; values beyond are clipped"
    if given.values is not None:
        ends, said = (given.values,), "--range"
    if given.intensity is not None:
        form, basis = intensity_fields(given.intensity, form), "--intensity"
    if not all(
        -math.inf < low < high < math.inf
        for low, high in (*ends, (form.get("low", 0.0), form.get("high", 1.0)))
    ):
        raise SettingsInvalid(f"{configs.folder}: black is not below white ({basis})", hint=_RULE_HINT)
    facts.append(Fact("range", ", ".join(f"{low:g} to {high:g}" for low, high in ends), said))
    if form:
        facts.append(
            Fact("intensity", f"{form['intensity']} from {form['low']:g} to {form['high']:g}", basis)
        )
    # Of samples s in [-1, 1] the network's are low + (s + 1) (high - low) / 2 = (s - mean) / std.
    mean = tuple(-1.0 - 2.0 * low / (high - low) for low, high in ends)
    std = tuple(2.0 / (high - low) for low, high in ends)
    return Normalisation(mean=mean if len(ends) > 1 else mean[0], std=std if len(ends) > 1 else std[0]), form


def file_kind(path: Path) -> str:
    """Return "ct" or "mr" where the name of a file of MAISI says it, else nothing."""
    found = _KIND.search(path.name.lower())
    return found[1] if found else ""


def modality_kind(number: object) -> str:
    if not isinstance(number, int) or number < 1:
        return ""
    return "ct" if number < MODALITIES["mri"] else "mr"


def _maisi_kind(read: Read, given: Told) -> str:
    """Whether a network of MAISI is of CT or MR: by the name of its file and by the modality that it is told."""
    path = Path(read.source)
    number = read.network.fixed.get("class_labels", MODALITIES.get(str(given.modality)))
    named, told = file_kind(path), modality_kind(number)
    if named and told and named != told:
        raise SettingsInvalid(
            f"{path} was trained on {named.upper()} by its name, and --modality says {told.upper()} ({number})",
            hint=f"--modality {', '.join(each for each in MODALITIES if each.startswith(named))}",
            facts={"field": "modality"},
        )
    return named or told


def _of_transforms(configs: Configs, given: Told, dims: int) -> tuple[Scaled | None, str]:
    """What the transforms make of values, and where they are written; None where none says it."""
    scaled = dict[Scaled, str]()
    for transforms in _lists(configs):
        if (found := _scaled(configs, transforms, given, dims)) is not None:
            last = [each for each in transforms if _plain(each.name) in SCALING][-1]
            scaled.setdefault(found, f"{last.name} in {last.file}")
    if len(scaled) > 1:
        places = " and ".join(scaled.values())
        raise SettingsInvalid(
            f"{configs.folder}: {places} scale values differently",
            hint=_RULE_HINT,
            facts={"field": "transforms"},
        )
    return next(iter(scaled.items()), (None, ""))


def _plain(name: str) -> str:
    """The name of a transform without the ending of its form for dictionaries."""
    names = (name, name.removesuffix("Dict"), name[:-1])
    return next((each for each in names if each in SCALING | KEEPING), name)


def _lists(configs: Configs) -> Iterator[list[Found]]:
    """Yield each list of transforms before the network, with those alone that take its samples."""
    known = SCALING | KEEPING
    lists = [found for found in configs.lists() if any(_plain(each.name) in known for each in found)]
    inside = {each.key for found in lists for each in found}
    lists += [
        [each] for each in configs.definitions() if _plain(each.name) in SCALING and each.key not in inside
    ]
    keys = {each.key: _listed(configs.get(f"{each.key}::keys")) for found in lists for each in found}
    names = [name for told in keys.values() for name in told]
    sample = next((name for name in ("image", *names) if name in names), "")
    for found in lists:
        own = [each for each in found if not keys[each.key] or sample in keys[each.key]]
        if not any(part.startswith("post") for each in found[:1] for part in each.key.split("::")):
            yield own


def _scaled(configs: Configs, transforms: list[Found], given: Told, dims: int) -> Scaled | None:
    """What one list of transforms makes of values; None where it changes none. Raises where that cannot be told."""
    found: Scaled | None = None
    for each in transforms:
        name = _plain(each.name)
        if name in KEEPING or (name.startswith("Rand") and "Lambda" not in name):
            continue
        if name.startswith("Lambda") and takes_a_part(each.arguments.get("func")):
            continue
        why = "changes values in a way that is not read"
        try:
            if name in SCALING:
                arguments = {key: configs.get(f"{each.key}::{key}") for key in each.arguments}
                found, why = _step(name, arguments, found, given, dims)
        except (TypeError, ValueError, ArithmeticError):
            why = "has arguments that are no numbers in their places"
        if why:
            raise each.refused("", f"is {each.target[:60]}, which {why}", _RULE_HINT)
    return found


def _step(
    name: str, told: dict[str, Any], was: Scaled | None, given: Told, dims: int
) -> tuple[Scaled | None, str]:
    """How values are scaled after one transform more; or why that cannot be told."""
    clips = bool(told.get("clip"))
    if name == "NormalizeIntensity":
        middle, deviation = told.get("subtrahend"), told.get("divisor")
        if middle is None or deviation is None:
            return was, "scales each image by its own mean and deviation (subtrahend, divisor)"
        if told.get("nonzero"):
            return was, "leaves zeros out (nonzero)"
        middles, slopes = _listed(middle), [1.0 / number for number in _listed(deviation)]
        offsets = [-number * slope for number, slope in zip(middles, slopes, strict=True)]
        if was is not None:
            return was.moved(slopes, offsets), ""
        if given.values is None or len(slopes) > 1:
            return was, "scales values whose black and white no file says: --range LOW:HIGH, of the network's"
        low, high = ((end - offsets[0]) / slopes[0] for end in given.values)
        return Scaled(low, high, (given.values,)), ""
    least, most = ("minv", "maxv") if name == "ScaleIntensity" else ("b_min", "b_max")
    low, high = (
        default if told.get(key) is None else float(told[key]) for key, default in ((least, 0.0), (most, 1.0))
    )
    if name == "ScaleIntensityRange":
        black, white = float(told["a_min"]), float(told["a_max"])
        if was is None:
            return Scaled(black, white, ((low, high),), clipped=clips), ""
        if clips and not all(black <= end <= white for ends in was.ends for end in ends):
            return was, "clips values that were scaled before"
        slope = (high - low) / (white - black)
        return was.moved([slope], [low - black * slope]), ""
    if was is not None:
        return was, "scales values that were scaled before, by each image"
    if told.get("relative") or told.get("factor"):
        return was, "scales by a factor or relative to percentiles"
    if name == "ScaleIntensityRangePercentiles":
        return Scaled(float(told["lower"]), float(told["upper"]), ((low, high),), True, clips), ""
    # Of pictures, files of 8 bits in their own range.
    return Scaled(0.0, 255.0 if dims == 2 else 100.0, ((low, high),), percentiles=dims == 3), ""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]

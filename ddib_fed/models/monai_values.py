"""Reads from the transforms of a MONAI bundle how values of files become the network's numbers.

Linear maps and percentiles are read. Any other transform of the samples' values is refused by its name, unless the
command says the rule: a model whose black and white are not known gives wrong pictures without an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.import_guided import Fact, Told
from ddib_fed.models.import_latents import Read
from ddib_fed.models.manifest import intensity_fields
from ddib_fed.models.monai_configs import Configs, Found
from ddib_fed.models.units import Normalisation

SCALING: Final = re.compile(
    r"(ScaleIntensity|ScaleIntensityRange|ScaleIntensityRangePercentiles|NormalizeIntensity)(d|D|Dict)?"
)
KEEPING: Final = re.compile(
    r"(Rand(?!Lambda)\w+|LoadImage|EnsureChannelFirst|AddChannel|AsChannelFirst|AsChannelLast|Transpose|SqueezeDim|"
    r"EnsureType|CastToType|ToTensor|ToNumpy|ToCupy|ToDevice|Identity|DataStats|CopyItems|SelectItems|DeleteItems|SplitDim|"
    r"RepeatChannel|RemoveRepeatedChannel|Orientation|Spacing|SpatialResample|ResampleToMatch|Resize|Flip|Rotate|Rotate90|"
    r"Zoom|Affine|Pad|SpatialPad|BorderPad|DivisiblePad|Crop|SpatialCrop|CenterSpatialCrop|CenterScaleCrop|CropForeground|"
    r"ResizeWithPadOrCrop|BoundingRect|FlattenSubKeys|SaveImage|Invert|Activations|AsDiscrete)(d|D|Dict)?"
)
"""Transforms that change no value, or only the network's answer; random ones change none on the average."""
PART: Final = re.compile(r"\$lambda (\w+): ?\1\[[-\w@:#, ]*\]")
"""Code that takes a part of an array, as MONAI's bundles choose a channel."""
MODALITIES: Final = {
    "unknown": 0, "ct": 1, "ct_wo_contrast": 2, "ct_contrast": 3, "mri": 8, "mri_t1": 9, "mri_t2": 10, "mri_flair": 11,
    "mri_pd": 12, "mri_dwi": 13, "mri_adc": 14, "mri_ssfp": 15, "mri_mra": 16,
}  # fmt: skip
"""MAISI's own; a modality_mapping.json in the folder goes before."""
RULE_HINT: Final = "--intensity RULE, and --range LOW:HIGH, say how values became the network's"


class Scaled(NamedTuple):
    """What becomes black and white, values or percentiles of a file, and the network's numbers of these."""

    rule: str
    black: float
    white: float
    low: float = 0.0
    high: float = 1.0

    def moved(self, slope: float, offset: float) -> Scaled:
        return self._replace(low=self.low * slope + offset, high=self.high * slope + offset)

    def fields(self) -> dict[str, Any]:
        """Fields of a `PictureFormat`; none for the values of 8 bits."""
        if self.rule == "percentile":
            return intensity_fields(f"percentile:{self.black:g},{self.white:g}@0:65535")
        eight = (self.black, self.white) == (0.0, 255.0)
        return {} if eight else {"low": self.black, "high": self.white, "bits": 16, "intensity": self.rule}


MAISI: Final = {"ct": Scaled("hu", -1000.0, 1000.0), "mr": Scaled("percentile", 0.0, 99.5)}
"""Of the training of MAISI's networks (its scripts/transforms.py)."""


def units_of(
    configs: Configs, given: Told, facts: list[Fact], read: Read
) -> tuple[Normalisation, dict[str, Any]]:
    """Units of the network's samples; fields of a `PictureFormat` that say how values in files become samples."""
    found = dict[Scaled, str]()
    for transforms in _lists(configs):
        place = transforms[-1].key.rpartition("::")[0]
        try:
            scaled = _scaled(configs, transforms, given, read.network.dims)
        except SettingsInvalid:
            if given.intensity is None:
                raise
            scaled = None
        if scaled is not None:
            found.setdefault(scaled, f"the transforms of {place}")
    if len(found) > 1 and given.intensity is None:
        places = " and ".join(found.values())
        raise SettingsInvalid(f"{configs.folder}: {places} scale values differently", hint=RULE_HINT)
    found = found if len(found) == 1 else {}
    if not found and read.network.name.endswith("Maisi") and (kind := _kind(read, given)):
        found = {MAISI[kind]: f"MAISI's training on {kind.upper()}"}
    usual = Scaled("values", 0.0, 255.0), "assumed, as MONAI's; --range LOW:HIGH says another"
    scaled, basis = next(iter(found.items()), usual)
    form, (low, high) = scaled.fields(), given.values or (scaled.low, scaled.high)
    facts.append(Fact("range", f"{low:g} to {high:g}", "--range" if given.values else basis))
    if given.intensity is not None:
        form, basis = intensity_fields(given.intensity, form), "--intensity"
    if form:
        span = f"{form['intensity']} from {form['low']:g} to {form['high']:g}"
        facts.append(Fact("intensity", span, f"{basis}; values beyond are clipped"))
    for black, white in ((low, high), (form.get("low", 0.0), form.get("high", 1.0))):
        if not -math.inf < black < white < math.inf:
            raise SettingsInvalid(f"{configs.folder}: black is not below white ({basis})", hint=RULE_HINT)
    half = (high - low) / 2  # of samples s in [-1, 1] the network's are low + (s + 1) half = (s - mean) / std
    return Normalisation(mean=-1.0 - low / half, std=1.0 / half), form


def kind_of(told: Any) -> str:
    """Return "ct" or "mr" for a file of MAISI, such as diff_unet_3d_rflow-ct.pt, or a number of a modality."""
    if isinstance(told, int):
        return "" if not told else "ct" if told < MODALITIES["mri"] else "mr"
    found = re.search(r"[-_](ct|mr)i?(?:[-_.]|$)", Path(told or "").name.lower())
    return found[1] if found else ""


def _kind(read: Read, given: Told) -> str:
    number = read.network.fixed.get("class_labels", MODALITIES.get(str(given.modality)))
    named, told = kind_of(read.source), kind_of(number)
    if named and told and named != told:
        raise SettingsInvalid(
            f"{read.source} was trained on {named.upper()} by its name, and modality {number} is {told.upper()}",
            hint=f"--modality {', '.join(each for each in MODALITIES if each.startswith(named))}",
        )
    return named or told


def _lists(configs: Configs) -> Iterator[list[Found]]:
    """Yield each list of transforms before the network, with those alone that take its samples."""
    known = re.compile(f"{SCALING.pattern}|{KEEPING.pattern}")
    lists = [found for found in configs.lists() if any(known.fullmatch(each.name) for each in found)]
    inside = {each.key for found in lists for each in found}
    alone = [
        each for each in configs.definitions() if SCALING.fullmatch(each.name) and each.key not in inside
    ]
    lists += [[each] for each in alone]
    keys = {each.key: _listed(configs.get(f"{each.key}::keys")) for found in lists for each in found}
    names = [name for told in keys.values() for name in told]
    sample = next((name for name in ("image", *names) if name in names), "")
    for found in lists:
        own = [each for each in found if not keys[each.key] or sample in keys[each.key]]
        if own and not any(part.startswith("post") for part in found[0].key.split("::")):
            yield own


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _scaled(configs: Configs, transforms: list[Found], given: Told, dims: int) -> Scaled | None:
    """What a list of transforms makes of values; None where it changes none. Raises where that cannot be told."""
    found: Scaled | None = None
    for each in transforms:
        keeps = KEEPING.fullmatch(each.name) or PART.fullmatch(str(each.arguments.get("func")))
        if keeps and each.known:
            continue
        configs.value(each.arguments.get("_disabled_"), f"{each.key}::_disabled_")  # raises where it is code
        told = {key: configs.get(f"{each.key}::{key}") for key in each.arguments}
        try:
            found = _step(each, told, found, given, dims)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise each.refused("", f"is {each.target[:60]}: {error}", RULE_HINT) from error
    return found


def _step(each: Found, told: Mapping[str, Any], was: Scaled | None, given: Told, dims: int) -> Scaled:
    """How values are scaled after one transform more; raise ValueError where that cannot be told."""
    kind = SCALING.fullmatch(each.name)
    if kind is None or not each.known:
        raise ValueError("it changes values in a way that is not read")
    if kind[1] == "NormalizeIntensity":
        middle, deviation = (set(_listed(told.get(key))) for key in ("subtrahend", "divisor"))
        if len(middle) != 1 or len(deviation) != 1 or told.get("nonzero"):
            raise ValueError("it scales each image, or each channel, by a mean and a deviation of its own")
        offset, slope = -middle.pop(), 1.0 / deviation.pop()
        if was is not None:
            return was.moved(slope, offset * slope)
        if given.values is None:
            raise ValueError(
                "no file says black and white of what it scales; --range LOW:HIGH, of the network's"
            )
        black, white = (end / slope - offset for end in given.values)
        return Scaled("values", black, white, *given.values)
    ends = ("minv", "maxv") if kind[1] == "ScaleIntensity" else ("b_min", "b_max")
    low, high = (float(value) if (value := told.get(key)) is not None else usual
                 for key, usual in zip(ends, (0.0, 1.0), strict=True))  # fmt: skip
    if kind[1] == "ScaleIntensityRange":
        span = Scaled(
            "values", float(told.get("a_min", math.nan)), float(told.get("a_max", math.nan)), low, high
        )
        if was is None:
            return span
        if told.get("clip") and not span.black <= was.low < was.high <= span.white:
            raise ValueError("it clips what was scaled before")
        slope = (high - low) / (span.white - span.black)
        return was.moved(slope, low - span.black * slope)
    if was is not None or told.get("relative") or told.get("factor"):
        raise ValueError("it scales each image by itself after another transform, or by a factor")
    if kind[1] == "ScaleIntensityRangePercentiles":
        return Scaled(
            "percentile", float(told.get("lower", math.nan)), float(told.get("upper", math.nan)), low, high
        )
    # From the least to the most of each: of pictures, files of 8 bits in their own range.
    return (
        Scaled("values", 0.0, 255.0, low, high) if dims == 2 else Scaled("percentile", 0.0, 100.0, low, high)
    )

"""The configurations of a MONAI bundle as one, and how their transforms make values of files the network's numbers.

Definitions (`_target_`), references (`@a::b#c`, `%a`) and arithmetic (`$`) are read; code is refused by its key. Of
transforms linear maps and percentiles are read, and others of the samples' values refused, unless the command says the
rule: a model whose black and white are not known gives wrong pictures without an error.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid, extra
from ddib_fed.files import MAX_CONFIG_BYTES, parse_json, read_small
from ddib_fed.importers.latents import Read
from ddib_fed.importing import Fact, ImportOptions, Normalisation, intensity_fields

SUFFIXES: Final = (".json", ".yaml", ".yml")
RANKED: Final = ("inference", "train", "multi", "eval", "valid")
"""Files of these names belong to one bundle and may repeat its definitions; the files of MAISI do not."""
MAX_YAML_BYTES: Final = 128 << 10  # of a file; the parser reads so much in half a second
DEEPEST: Final = 32  # values in values, and references to references; the model zoo's bundles have up to 8
MOST_VALUES: Final = 100_000
"""Values of a folder at most, references and aliases expanded; MAISI's configurations have 40,000."""
REFERENCE: Final = re.compile(r"@\w+(?:(?:::|#)\w+)*")
LARGEST, LONGEST = 1e18, 4096  # number that arithmetic gives; expression, or list that one gives


class Found(NamedTuple):
    """A definition: its id, its file, its class, and its arguments as they are written."""

    key: str
    file: str
    target: str
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]

    @property
    def old(self) -> bool:
        """Of the package before MONAI 1.4."""
        return self.target.startswith("generative.")

    @property
    def known(self) -> bool:
        return self.target == self.name or self.old or self.target.startswith("monai.")

    def refused(self, key: str, why: str, hint: str) -> SettingsInvalid:
        where = f"{self.file}: {self.key}{f'::{key}' if key else ''} {why}"
        return SettingsInvalid(where, hint=hint, facts={"field": (key or self.key)[:100]})


def target_of(value: Any) -> str:
    """Return the class that a value defines; empty if it defines none."""
    target = value.get("_target_") if isinstance(value, Mapping) else None
    return target if isinstance(target, str) else ""


class Configs:
    """The configurations of a folder and of its configs/; where a key is defined twice, that of inference counts."""

    def __init__(self, folder: Path, translate: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        places = [path for place in (folder / "configs", folder) for path in sorted(place.glob("*"))]
        paths = [path for path in places if path.suffix in SUFFIXES]
        self.folder, self.text, self.metadata = folder, "", dict[str, Any]()
        self.twice = dict[str, str]()  # ids defined differently in a second file of the same rank
        self._items, self._file, self._left = dict[str, Any](), dict[str, str](), MOST_VALUES
        for path in sorted(paths, key=lambda path: not path.stem.startswith("inference")):
            content, text = _parsed(path)
            if path.stem == "metadata":
                self.metadata |= content
                continue
            self.text += text
            for key, value in translate(content).items():
                first = self._file.get(key)
                peers = first and not any(name.startswith(RANKED) for name in (path.name, first))
                if (
                    peers
                    and target_of(value)
                    and self._leaves(key, value) != self._leaves(key, self._items[key])
                ):
                    self.twice[key] = path.name
                self._items.setdefault(key, value)
                self._file.setdefault(key, path.name)
        self._all = list(self._below("", self._items))
        if not self._items:
            raise FileMissing(
                f"{folder} has no configuration (configs/inference.json, config.json)",
                hint="name the folder of the bundle, with configs/ and models/ in it; of checkpoints alone, put the "
                "JSON that defines the network beside them",
            )

    def definitions(self, *names: str) -> Iterator[Found]:
        """Yield every definition that is not disabled, or only definitions of classes of these names."""
        for key, value in self._all:
            if (definition := self._definition(key, value)) is not None and (
                not names or definition.name in names
            ):
                yield definition

    def lists(self) -> Iterator[list[Found]]:
        """Yield the definitions in each list, in its order, with those it refers to; code counts as a class."""
        for key, value in self._all:
            if isinstance(value, str) and MAKING.match(value):
                yield [Found(key, self._file_of(key), value, {})]
            elif isinstance(value, list):
                elements = [self._element(f"{key}::{place}", each) for place, each in enumerate(value)]
                yield [each for each in elements if each is not None]

    def _element(self, key: str, value: Any) -> Found | None:
        for _ in range(DEEPEST):
            if not isinstance(value, str) or not REFERENCE.fullmatch(re.sub(r"^\$?[@%]", "@", value.strip())):
                break
            key = value.strip().lstrip("$@%").replace("#", "::")
            if (raw := self._raw(key)) is None:
                break
            value = raw
        if isinstance(value, str) and value.startswith(("$", "@", "%")):
            return Found(key, self._file_of(key), value, {})
        return self._definition(key, value)

    def _definition(self, key: str, value: Any) -> Found | None:
        target = "" if self._is_disabled(key, value) else target_of(value)
        return Found(key, self._file_of(key), target, value) if target else None

    def _is_disabled(self, key: str, value: Any) -> bool:
        """Return whether a definition is left out; one whose `_disabled_` is code counts until it is read."""
        flag = value.get("_disabled_") if isinstance(value, Mapping) else None
        flag = self.get(f"{key}::_disabled_") if isinstance(flag, str) else flag
        return flag.strip().lower() == "true" if isinstance(flag, str) else bool(flag)

    def _spend(self, key: str, values: int = 1) -> None:
        self._left -= values
        if self._left < 0 or key.count("::") > DEEPEST:
            most = f"{MOST_VALUES:,} values" if self._left < 0 else f"{DEEPEST} values in each other"
            raise BundleInvalid(
                f"{self._file_of(key)}: {key[:60]}: there are more than {most}, references and aliases expanded",
                hint="write the values that the networks need into one small file",
            )

    def _file_of(self, key: str) -> str:
        return self._file.get(re.split("::|#", key)[0], str(self.folder))

    def _leaves(self, key: str, value: Any) -> dict[str, Any]:
        return {at: each for at, each in self._below(key, value) if not isinstance(each, Mapping | list)}

    def _below(self, at: str, whole: Any) -> Iterator[tuple[str, Any]]:
        """Yield a value and all those in it with their ids, each before those in it; nothing that is disabled."""
        left: list[tuple[str, Any]] = [(at, whole)]
        while left:
            key, value = left.pop()
            if self._is_disabled(key, value):
                continue
            yield key, value
            if isinstance(value, Mapping | list):
                self._spend(key, len(value))
                parts = value.items() if isinstance(value, Mapping) else enumerate(value)
                left += [(f"{key}::{name}".removeprefix("::"), part) for name, part in parts][::-1]

    def get(self, *keys: str) -> Any:
        """Return the value of the first of these ids that has one; None for code, which is not run."""
        for key in keys:
            try:
                if (value := self.value(self._raw(key), key)) is not None:
                    return value
            except SettingsInvalid:
                continue
        return None

    def arguments(self, found: Found) -> dict[str, Any]:
        self.value(found.arguments.get("_disabled_"), f"{found.key}::_disabled_")  # raises where it is code
        own = {name: part for name, part in found.arguments.items() if not name.startswith("_")}
        resolved: dict[str, Any] = self.value(own, found.key)
        return resolved

    def _raw(self, key: str) -> Any:
        value: Any = self._items
        for part in re.split(r"::|#", key):
            if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def value(self, raw: Any, key: str, depth: int = 0) -> Any:
        """Return `raw`, found at `key`, with references and arithmetic replaced by their values."""
        self._spend(key)
        if isinstance(raw, Mapping):
            return {name: self.value(part, f"{key}::{name}", depth + 1) for name, part in raw.items()}
        if isinstance(raw, list):
            return [self.value(part, f"{key}::{number}", depth + 1) for number, part in enumerate(raw)]
        if not isinstance(raw, str) or raw[:1] not in ("@", "%", "$"):
            return raw
        if depth > DEEPEST:
            raise self._refused(key, raw, "its references go round in a circle")
        if raw[0] != "$":
            if (nested := self._raw(raw[1:])) is None:
                raise self._refused(key, raw, "there is no such id")
            return self.value(nested, raw[1:], depth + 1)
        if len(raw) > LONGEST:
            raise self._refused(key, raw, f"it is longer than {LONGEST} characters")
        names = {each: f"_{number}" for number, each in enumerate(REFERENCE.findall(raw))}
        text = REFERENCE.sub(lambda match: names[match[0]], raw[1:].strip())
        try:
            tree = ast.parse(text, mode="eval").body
            operands = {name: self.value(each, key, depth + 1) for each, name in names.items()}
            return computed(tree, operands)
        except (
            ValueError, SyntaxError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError,
        ) as error:  # fmt: skip
            why = "it is code, and only arithmetic of numbers and references is computed"
            raise self._refused(key, raw, why) from error

    def _refused(self, key: str, raw: str, why: str) -> SettingsInvalid:
        definition = Found(key, self._file_of(key), raw, {})
        return definition.refused("", f"is {raw[:80]}: {why}", f"write the value of {key} there")


def _parsed(path: Path) -> tuple[Mapping[str, Any], str]:
    kind = "JSON" if path.suffix == ".json" else "YAML"
    hint = "move files that are no configurations of the networks out of the folder"
    text = read_small(path, hint=hint, max_bytes=MAX_CONFIG_BYTES if kind == "JSON" else MAX_YAML_BYTES)
    try:
        values = parse_json(text) if kind == "JSON" else _yaml(text)
    except (ValueError, RecursionError) as error:
        why = str(error).partition("\n")[0]
        raise BundleInvalid(f"{path}: it is not {kind} that is read: {why}", hint="copy it again") from error
    return (values if isinstance(values, Mapping) else {}), text.decode(errors="replace")


def _yaml(text: bytes) -> Any:
    with extra("node", "PyYAML", "configurations in YAML need PyYAML"):
        yaml: Any = import_module("yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    loader.flatten_mapping = id  # merges (<<) are not read: they would be expanded here
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_OPERATORS: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow,
}  # fmt: skip


def computed(node: ast.expr, told: Mapping[str, Any]) -> Any:
    """Compute arithmetic on numbers, words and lists, with the names of `told`; raise ValueError for anything else."""
    match node:
        case ast.Constant(value=int() | float() | str() | None):
            return node.value
        case ast.Name() if node.id in told:
            return told[node.id]
        case ast.UnaryOp(op=ast.USub()):
            return -computed(node.operand, told)
        case ast.UnaryOp(op=ast.Not()):
            return not computed(node.operand, told)
        case ast.List() | ast.Tuple():
            return [computed(each, told) for each in node.elts]
        case ast.Subscript(slice=ast.Constant(value=int(place))):
            return computed(node.value, told)[place]
        case ast.Call(func=ast.Name(id="int" | "float" as kind), args=[one], keywords=[]):
            return (int if kind == "int" else float)(computed(one, told))
        case ast.BinOp() if type(node.op) in _OPERATORS:
            left, right = computed(node.left, told), computed(node.right, told)
            numbers = all(isinstance(each, int | float) for each in (left, right))
            if not numbers and not isinstance(node.op, ast.Add):
                raise ValueError("no number")
            if isinstance(node.op, ast.Pow) and (abs(right) > 64 or abs(left) > 1e6):
                raise ValueError("a power out of all proportion")
            result = _OPERATORS[type(node.op)](left, right)
            if abs(result) > LARGEST if numbers else len(result) > LONGEST:
                raise ValueError("a number or a list out of all proportion")
            return result
    raise ValueError("no arithmetic")


SCALING: Final = re.compile(
    r"(ScaleIntensity|ScaleIntensityRange|ScaleIntensityRangePercentiles|NormalizeIntensity)(d|D|Dict)?"
)
KEEPING: Final = re.compile(
    r"(Rand(?!Lambda)\w+|LoadImage|EnsureChannelFirst|AddChannel|AsChannelFirst|AsChannelLast|Transpose|SqueezeDim|"
    r"EnsureType|CastToType|ToTensor|ToNumpy|ToCupy|ToDevice|Identity|DataStats|CopyItems|SelectItems|DeleteItems|SplitDim|"
    r"RepeatChannel|RemoveRepeatedChannel|Orientation|Spacing|SpatialResample|ResampleToMatch|Resize|Flip|Rotate|Rotate90|"
    r"Zoom|Affine|Pad|SpatialPad|BorderPad|DivisiblePad|Crop|SpatialCrop|CenterSpatialCrop|CenterScaleCrop|CropForeground|"
    r"ResizeWithPadOrCrop|BoundingRect|FlattenSubKeys|AsDiscrete)(d|D|Dict)?"
)
"""Transforms that change no value; random ones change none on the average."""
ANSWERING: Final = re.compile("(SaveImage|Invert|Activations)(d|D|Dict)?")  # of the network's answer
LOADING: Final = re.compile("LoadImage")
MAKING: Final = re.compile(r"\$[^(]*(transforms\.\w+|\bCompose)\(")  # code that makes transforms
PART: Final = re.compile(r"\$lambda (\w+): ?\1\[[-\w@:#, ]*\]")  # code that chooses a channel
MODALITIES: Final = {
    "unknown": 0, "ct": 1, "ct_wo_contrast": 2, "ct_contrast": 3, "mri": 8, "mri_t1": 9, "mri_t2": 10, "mri_flair": 11,
    "mri_pd": 12, "mri_dwi": 13, "mri_adc": 14, "mri_ssfp": 15, "mri_mra": 16,
}  # fmt: skip
"""MAISI's own; a modality_mapping.json in the folder goes before."""
RULE_HINT: Final = "--intensity RULE --range LOW:HIGH, e.g. --intensity percentile:0,100@0:65535 --range 0:1"


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
        """Return the fields of a `PictureFormat`; none for the values of 8 bits."""
        if self.rule == "percentile":
            return intensity_fields(f"percentile:{self.black:g},{self.white:g}@0:65535")
        eight = (self.black, self.white) == (0.0, 255.0)
        return {} if eight else {"low": self.black, "high": self.white, "bits": 16, "intensity": self.rule}


MAISI: Final = {"ct": Scaled("hu", -1000.0, 1000.0), "mr": Scaled("percentile", 0.0, 99.5)}
"""Black and white in MAISI's training (its scripts/transforms.py), by modality."""


def units_of(
    configs: Configs, given: ImportOptions, facts: list[Fact], read: Read
) -> tuple[Normalisation, dict[str, Any]]:
    """Return units of the network's samples, and fields of a `PictureFormat` for values in files."""
    kinds = dict[Scaled, str]()
    for transforms in _lists(configs):
        place = transforms[-1].key.rpartition("::")[0] or transforms[-1].key
        try:
            scaled = _scaled(configs, transforms, given, read.network.dims)
        except SettingsInvalid:
            if given.intensity is None or given.values is None:
                raise
            scaled = None
        if scaled is not None:
            kinds.setdefault(scaled, f"the transforms of {place}")
    if len(kinds) > 1 and None in {given.intensity, given.values}:
        places = " and ".join(kinds.values())
        raise SettingsInvalid(f"{configs.folder}: {places} scale values differently", hint=RULE_HINT)
    kinds = kinds if len(kinds) == 1 else {}
    if not kinds and read.network.name.endswith("Maisi") and (kind := _kind(read, given)):
        kinds = {MAISI[kind]: f"MAISI's training on {kind.upper()}"}
    usual = Scaled("values", 0.0, 255.0), "assumed, as MONAI's; --range LOW:HIGH says another"
    scaled, basis = next(iter(kinds.items()), usual)
    form, (low, high) = scaled.fields(), given.values or (scaled.low, scaled.high)
    facts.append(Fact("range", f"{low:g} to {high:g}", "--range" if given.values else basis))
    if given.intensity is not None:
        form, basis = intensity_fields(given.intensity, form), "--intensity"
    if form:
        span = f"{form['intensity']} from {form['low']:g} to {form['high']:g}"
        facts.append(Fact("intensity", span, f"{basis}; values beyond are clipped"))
    for black, white in ((low, high), (form.get("low", 0.0), form.get("high", 1.0))):
        if not 1e-300 < white - black < math.inf:
            raise SettingsInvalid(f"{configs.folder}: black is not below white ({basis})", hint=RULE_HINT)
    half = (high - low) / 2  # of samples s in [-1, 1] the network's are low + (s + 1) half = (s - mean) / std
    return Normalisation(mean=-1.0 - low / half, std=1.0 / half), form


def kind_of(told: Any) -> str:
    """Return "ct" or "mr" for a file of MAISI, such as diff_unet_3d_rflow-ct.pt, or a number of a modality."""
    if isinstance(told, int):
        return "" if not told else "ct" if told < MODALITIES["mri"] else "mr"
    match = re.search(r"[-_](ct|mr)i?(?:[-_.]|$)", Path(told or "").name.lower())
    return match[1] if match else ""


def _kind(read: Read, given: ImportOptions) -> str:
    """Return "ct" or "mr" for a network of MAISI; raise SettingsInvalid unless a file or the command says which."""
    modality = str(given.modality)
    number = int(modality) if modality.isdecimal() else MODALITIES.get(modality)
    named, told = kind_of(read.source), kind_of(read.network.fixed.get("class_labels", number))
    if named and told and named != told:
        raise SettingsInvalid(
            f"{read.source} was trained on {named.upper()} by its name, and the modality told is {told.upper()}",
            hint="--modality ct" if named == "ct" else "--modality mri",
        )
    if not named and not told and given.intensity is None:
        why = f"{read.source} was trained on CT or on MR, and neither a name nor --modality says on which"
        raise SettingsInvalid(why, hint="--modality ct, or --modality mri")
    return named or told


def _lists(configs: Configs) -> Iterator[list[Found]]:
    """Yield each list of transforms before the network, with those alone that take its samples."""
    known = re.compile(f"{SCALING.pattern}|{KEEPING.pattern}")

    def transforms(each: Found) -> bool:  # those of dictionaries have keys
        return "keys" in each.arguments or bool(known.fullmatch(each.name) or MAKING.match(each.target))

    def answers(names: list[str]) -> bool:
        return any(map(ANSWERING.fullmatch, names)) and not any(map(LOADING.match, names))

    every = [elements for elements in configs.lists() if any(map(transforms, elements))]
    inside = {each.key for elements in every for each in elements}
    every += [[each] for each in configs.definitions() if each.key not in inside and transforms(each)]
    lists = [elements for elements in every if not answers([each.name for each in elements])]
    keys = {each.key: _listed(configs.get(f"{each.key}::keys")) for elements in lists for each in elements}
    names = [name for told in keys.values() for name in told]
    sample = next((name for name in ("image", *names) if name in names), "")
    for elements in lists:
        own = [each for each in elements if not keys[each.key] or sample in keys[each.key]]
        if own and not any(part.startswith("post") for part in elements[0].key.split("::")):
            yield own


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _scaled(configs: Configs, transforms: list[Found], given: ImportOptions, dims: int) -> Scaled | None:
    """Follow a list of transforms; return how it scales values, None if it does not; raise if that is unknown."""
    scaling: Scaled | None = None
    for each in transforms:
        keeps = KEEPING.fullmatch(each.name) or ANSWERING.fullmatch(each.name)
        keeps = keeps or PART.fullmatch(str(each.arguments.get("func")))
        if keeps and each.known:
            continue
        configs.value(each.arguments.get("_disabled_"), f"{each.key}::_disabled_")  # raises where it is code
        settings = {key: raw for key, raw in each.arguments.items() if key not in {"dtype", "func"}}
        # Code raises here: it must not become the default of a setting.
        numbers = {key: configs.value(raw, f"{each.key}::{key}") for key, raw in settings.items()}
        try:
            scaling = _step(each, numbers, scaling, given, dims)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise each.refused("", f"is {each.target[:60]}: {error}", RULE_HINT) from error
    return scaling


def _step(
    each: Found, told: Mapping[str, Any], was: Scaled | None, given: ImportOptions, dims: int
) -> Scaled:
    """Return the scaling after one more transform; raise ValueError if it is unknown."""
    kind = SCALING.fullmatch(each.name)
    if kind is None or not each.known:
        raise ValueError("it changes values in a way that is not read")
    if kind[1] == "NormalizeIntensity":
        middle, deviation = (set(_listed(told.get(key))) for key in ("subtrahend", "divisor"))
        if len(middle) != 1 or len(deviation) != 1 or told.get("nonzero"):
            raise ValueError(
                "it scales each image, or each channel, by a mean and a deviation of its own, or leaves zeros out"
            )
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
        least, most = (float(told.get(key, math.nan)) for key in ("lower", "upper"))
        if not 0 <= least < most <= 100:
            raise ValueError("its percentiles do not rise from 0 to 100")
        return Scaled("percentile", least, most, low, high)
    # From the least to the most of each: of pictures, files of 8 bits in their own range.
    return (
        Scaled("values", 0.0, 255.0, low, high) if dims == 2 else Scaled("percentile", 0.0, 100.0, low, high)
    )

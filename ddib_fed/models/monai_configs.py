"""The configurations of a MONAI bundle as one: definitions (`_target_`), references and arithmetic, and no code.

`@a::b#c` and `%a` stand for what is written at that id; of `$` expressions those of numbers, lists and references are
computed, and others are refused by their key.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid, extra
from ddib_fed.files import parse_json

SUFFIXES: Final = (".json", ".yaml", ".yml")
DEEPEST: Final = 32  # references to references


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


class Configs:
    """Those of a folder and its configs/: of inference before others, of which further facts are taken."""

    def __init__(self, folder: Path, translate: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        places = [path for place in (folder / "configs", folder) for path in sorted(place.glob("*"))]
        paths = [path for path in places if path.suffix in SUFFIXES]
        self.folder, self.text, self.metadata = folder, "", dict[str, Any]()
        self._items, self._file = dict[str, Any](), dict[str, str]()
        for path in sorted(paths, key=lambda path: not path.stem.startswith("inference")):
            found, text = _parsed(path)
            if path.stem == "metadata":
                self.metadata |= found
                continue
            self.text += text
            for key, value in translate(found).items():
                self._items.setdefault(key, value)
                self._file.setdefault(key, path.name)
        if not self._items:
            raise FileMissing(
                f"{folder} has no configuration (configs/inference.json, config.json)",
                hint="name the folder of the bundle, with configs/ and models/ in it; of checkpoints alone, put the "
                "JSON that defines the network beside them",
            )

    def definitions(self, *names: str) -> Iterator[Found]:
        """Every definition, or those of the classes of these names."""
        return (found for found in self._below("", self._items) if not names or found.name in names)

    def _below(self, key: str, value: Any) -> Iterator[Found]:
        if isinstance(value, Mapping) and isinstance(target := value.get("_target_"), str):
            yield Found(key, self._file[key.partition("::")[0]], target, value)
        parts = (
            value.items()
            if isinstance(value, Mapping)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        )
        for name, part in parts:
            yield from self._below(f"{key}::{name}" if key else str(name), part)

    def get(self, *keys: str) -> Any:
        """The value of the first of these ids that has one; None for code, which is not run."""
        for key in keys:
            try:
                if (value := self.value(self._raw(key), key)) is not None:
                    return value
            except SettingsInvalid:
                continue
        return None

    def arguments(self, found: Found) -> dict[str, Any]:
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
        """`raw`, found at `key`, with references and arithmetic replaced by what they are."""
        if isinstance(raw, Mapping):
            return {name: self.value(part, f"{key}::{name}", depth + 1) for name, part in raw.items()}
        if isinstance(raw, list):
            return [self.value(part, f"{key}::{number}", depth + 1) for number, part in enumerate(raw)]
        if not isinstance(raw, str) or raw[:1] not in ("@", "%", "$"):
            return raw
        if depth > DEEPEST:
            raise self._refused(key, raw, "its references go round in a circle")
        if raw[0] != "$":
            if (found := self._raw(raw[1:])) is None:
                raise self._refused(key, raw, "there is no such id")
            return self.value(found, raw[1:], depth + 1)
        references = re.findall(r"@\w+(?:(?:::|#)\w+)*", raw)
        text, told = raw[1:].strip(), dict[str, Any]()
        for number, reference in enumerate(sorted(references, key=len, reverse=True)):
            text = text.replace(reference, f"_{number}")
        try:
            tree = ast.parse(text, mode="eval").body
            for number, reference in enumerate(sorted(references, key=len, reverse=True)):
                told[f"_{number}"] = self.value(reference, key, depth + 1)
            return computed(tree, told)
        except (ValueError, SyntaxError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
            why = "it is code, and only arithmetic of numbers and references is computed"
            raise self._refused(key, raw, why) from error

    def _refused(self, key: str, raw: str, why: str) -> SettingsInvalid:
        return SettingsInvalid(
            f"{self._file.get(re.split('::|#', key)[0], self.folder)}: {key} is {raw[:80]}: {why}",
            hint=f"write the value of {key} there",
            facts={"field": key[:100]},
        )


def _parsed(path: Path) -> tuple[Mapping[str, Any], str]:
    text, kind = path.read_bytes(), "JSON" if path.suffix == ".json" else "YAML"
    try:
        found = parse_json(text) if kind == "JSON" else _yaml(text)
    except ValueError as error:
        raise BundleInvalid(f"{path}: it is not {kind}", hint="copy it again") from error
    return (found if isinstance(found, Mapping) else {}), text.decode(errors="replace")


def _yaml(text: bytes) -> Any:
    with extra("node", "PyYAML", "configurations in YAML need PyYAML"):
        yaml: Any = import_module("yaml")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_OPERATORS: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow,
}  # fmt: skip


def computed(node: ast.expr, told: Mapping[str, Any]) -> Any:
    """The value of arithmetic on numbers, words and lists, where names are those of `told`; anything else raises."""
    match node:
        case ast.Constant(value=int() | float() | str() | None):
            return node.value
        case ast.Name() if node.id in told:
            return told[node.id]
        case ast.UnaryOp(op=ast.USub()):
            return -computed(node.operand, told)
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
            return _OPERATORS[type(node.op)](left, right)
    raise ValueError("no arithmetic")

"""Reads a component's weights in every layout of diffusers: one file or shards, full precision or a variant.

diffusion_pytorch_model[.VARIANT].safetensors                   or .bin
diffusion_pytorch_model.safetensors.index[.VARIANT].json        names shards, ...[.VARIANT]-00001-of-00002...
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.models.importers.checkpoints import Checkpoint, read_tensors
from ddib_fed.models.importers.pipeline_index import read_json

STEM = "diffusion_pytorch_model"
SUFFIXES = (".safetensors", ".bin")
_VARIANT = re.compile(r"[A-Za-z0-9_]{1,40}")
_WHOLE = re.compile(rf"{STEM}(?:\.([A-Za-z0-9_]+))?(\.safetensors|\.bin)")
_INDEX = re.compile(rf"{STEM}(\.safetensors|\.bin)\.index(?:\.([A-Za-z0-9_]+))?\.json")
_SHARD = re.compile(rf"{STEM}(?:\.([A-Za-z0-9_]+))?-\d{{5}}-of-\d{{5}}(\.safetensors|\.bin)")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")


@dataclass(frozen=True, slots=True)
class Weights:
    """One set of weights in a folder."""

    path: Path
    suffix: str
    variant: str
    sharded: bool


def find_weights(folder: Path, variant: str | None = None) -> tuple[Weights, tuple[str, ...]]:
    """The set of weights to read, and remarks on other sets in the folder."""
    if variant is not None and not _VARIANT.fullmatch(variant):
        raise SettingsInvalid(f"{variant[:40]!r} is no variant of weights", hint="a word, such as fp16")
    there = list(_sets(folder))
    if not there:
        raise FileMissing(
            f"{folder} has neither {STEM}.safetensors nor {STEM}.bin, whole or with an index",
            hint="copy the whole folder again",
        )
    wanted = variant or ""
    named = sorted({found.variant for found in there} - {""})
    if variant is None and all(found.variant for found in there):
        if len(named) > 1:
            raise BundleInvalid(
                f"{folder} has the variants {', '.join(named)} and no full weights",
                hint=f"--variant {named[0]}",
            )
        wanted = named[0]
    chosen = [found for found in there if found.variant == wanted]
    if not chosen:
        has = ", ".join(named) or "none"
        raise FileMissing(
            f"{folder} has no variant {wanted} of the weights; it has: {has}",
            hint=f"--variant {named[0]}, or leave --variant out" if named else "leave --variant out",
        )
    first = next(found for suffix in SUFFIXES for found in chosen if found.suffix == suffix)
    if twin := next((found for found in chosen if found.suffix == first.suffix and found != first), None):
        raise BundleInvalid(
            f"{folder} has two sets of weights, {first.path.name} and {twin.path.name}",
            hint="remove the one that is not the model's",
        )
    return first, tuple(_remarks(first, there, asked=variant is not None))


def read_weights(weights: Weights) -> Checkpoint:
    """The tensors of one set."""
    if not weights.sharded:
        return read_tensors(weights.path)
    shards = _shards(weights)
    state: dict[str, Tensor] = {}
    dtypes: set[str] = set()
    for name, keys in shards.items():
        part = read_tensors(weights.path.parent / name)
        for key in sorted(keys ^ part.state.keys()):
            problem = "the index has it in this file, which lacks it"
            if key in part.state:
                problem = "it is in this file, and the index has it elsewhere or not at all"
            raise BundleInvalid(
                f"{part.path}: {key}: {problem}",
                hint=f"{weights.path.name} and the shards are not of one model: copy the whole folder again",
                facts={"field": key[:100]},
            )
        state |= part.state
        dtypes |= set(part.dtypes)
    return Checkpoint(weights.path, state, "", tuple(sorted(dtypes)))


def _sets(folder: Path) -> Iterator[Weights]:
    """Every set of weights, whole files first."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for name in names:
        if found := _WHOLE.fullmatch(name):
            yield Weights(folder / name, found[2], found[1] or "", sharded=False)
    for name in names:
        if found := _INDEX.fullmatch(name):
            yield Weights(folder / name, found[1], found[2] or "", sharded=True)


def _remarks(first: Weights, there: list[Weights], *, asked: bool) -> Iterator[str]:
    if first.variant and not asked:
        yield f"the weights are the variant {first.variant}: there are no others"
    for found in there:
        if found.variant != first.variant:
            hint = f"--variant {found.variant}" if found.variant else "leave --variant out"
            yield f"{found.path.name} beside it is not read ({hint})"


def _shards(weights: Weights) -> Mapping[str, set[str]]:
    """The names of the tensors of each shard."""
    folder, where = weights.path.parent, weights.path
    said = read_json(where).get("weight_map")
    if not isinstance(said, dict) or not said:
        raise BundleInvalid(f"{where}: weight_map is no table of tensors and files", hint="copy it again")
    shards: dict[str, set[str]] = {}
    for key, name in said.items():
        plain = isinstance(name, str) and _PLAIN.fullmatch(name) and name.endswith(weights.suffix)
        if not plain:
            raise BundleInvalid(
                f"{where}: {key[:100]}: {str(name)[:80]!r} is no plain name of a {weights.suffix} file",
                hint="copy it again from a good source",
                facts={"field": key[:100]},
            )
        shards.setdefault(name, set()).add(key)
    for name in shards:
        if not (folder / name).is_file():
            raise FileMissing(
                f"{folder / name} is not there, and {where.name} names it", hint="copy the whole folder again"
            )
    for path in sorted(folder.iterdir()):
        found = _SHARD.fullmatch(path.name)
        if (
            found
            and (found[1] or "", found[2]) == (weights.variant, weights.suffix)
            and path.name not in shards
        ):
            raise BundleInvalid(
                f"{path} is a shard that {where.name} does not name", hint="copy the whole folder again"
            )
    return shards

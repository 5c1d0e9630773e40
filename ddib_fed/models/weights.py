"""Reads which components a diffusers pipeline has, and refuses those that cannot be imported.

A pixel pipeline is a network (`UNet2DModel` or `DiTTransformer2DModel`) and a scheduler. Any other component
(autoencoder, text encoder, LoRA) is refused by name, because the network alone would compute something else.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.files import parse_json
from ddib_fed.models.bundle import Bundle, make_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.config import SyntheticConfig

NAMED = ("linear", "cosine")


def public_checkpoint(bundle: Bundle) -> tuple[bytes, str]:
    """The content of a .pt file, a state dict in float32, and the flags that the public scripts need."""
    manifest, network = bundle.manifest, bundle.manifest.network
    if not isinstance(network, SyntheticConfig):
        raise SettingsInvalid(
            f"{manifest.name} is a network of kind {network.kind}; the public code's for points is `synthetic`",
            hint="train one: ddib model train --domain moons --set network=public --steps 100000 --out DIR",
        )
    schedule = manifest.schedule
    named = schedule.steps is not None and schedule.name in NAMED and schedule.ends is None
    if not named or manifest.time_input != "timestep" or manifest.parameterisation == "v":
        raise SettingsInvalid(
            f"{manifest.name} predicts {manifest.parameterisation} and takes the time as {manifest.time_input}; the "
            "network of the public code predicts eps or x0 at integer steps of a linear or cosine schedule",
            hint="train one: ddib model train --domain moons --set network=public --steps 100000 --out DIR",
        )
    flags = {
        "num_channels": network.num_channels,
        "num_res_blocks": network.num_res_blocks,
        "in_channels": network.in_channels,
        "dropout": network.dropout,
        "diffusion_steps": schedule.steps,
        "noise_schedule": schedule.name,
        "predict_xstart": manifest.parameterisation == "x0",
        "rescale_timesteps": schedule.rescale_timesteps,
    }
    stream = io.BytesIO()
    torch.save({key: value.clone() for key, value in bundle.state.items()}, stream)
    return stream.getvalue(), " ".join(f"--{key} {value}" for key, value in flags.items())


# Names under which training scripts keep the state dict, averaged weights first.
WRAPPERS = (
    "ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "state_dict",
    "model_state_dict",
    "model",
    "network",
)
PREFIXES = ("module.",)
# What the public training code writes: ema_0.9999_500000.pt, model500000.pt and opt500000.pt.
_AVERAGED = re.compile(r"ema_(0?\.\d+)_(\d+)\.pt")
_RAW = re.compile(r"model(\d+)\.pt")
_OPTIMISER = re.compile(r"opt\d*\.pt")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights in a file."""

    path: Path
    state: Mapping[str, Tensor] = field(repr=False)
    under: str
    dtypes: tuple[str, ...]

    @property
    def steps(self) -> int:
        found = _AVERAGED.fullmatch(self.path.name) or _RAW.fullmatch(self.path.name)
        return int(found.groups()[-1]) if found else 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks about the weights, a sentence each."""
        said = []
        averaged = _AVERAGED.fullmatch(self.path.name)
        if averaged:
            said.append(f"weights averaged over training (rate {averaged[1]}, step {averaged[2]})")
        if _RAW.fullmatch(self.path.name):
            said.append("weights as they were trained; the averaged ones, ema_*.pt beside them, draw better")
        if self.under:
            said.append(f"weights found under {self.under!r}")
        if self.dtypes != ("float32",):
            said.append(f"{' and '.join(self.dtypes)} widened to float32")
        return tuple(said)


def read_checkpoint(path: Path) -> Checkpoint:
    """The state dict in a .pt file."""
    if not path.is_file():
        raise FileMissing(f"there is no file {path}")
    if _OPTIMISER.fullmatch(path.name):
        raise _optimiser(path)
    try:
        # Mapped, so that a checkpoint of gigabytes is not in memory twice; older file formats cannot be mapped.
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # on damaged bytes an unpickler raises any exception, IndexError included
        raise BundleInvalid(
            f"{path}: it is no checkpoint that can be read safely (weights only)",
            hint="save the state dict alone: torch.save(model.state_dict(), FILE)",
        ) from error
    if isinstance(loaded, Mapping) and "param_groups" in loaded:
        raise _optimiser(path)
    found, under = _unwrap(loaded)
    if found is None:
        raise BundleInvalid(
            f"{path}: it holds no state dict",
            hint=f"one is looked for at the top and under {', '.join(WRAPPERS)}",
        )
    return _checkpoint(path, found, under)


def read_tensors(path: Path) -> Checkpoint:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)


def read_safetensors(path: Path) -> Checkpoint:
    """The tensors of a .safetensors file."""
    if not path.is_file():
        raise FileMissing(f"there is no file {path}")
    try:
        found = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleInvalid(f"{path}: it cannot be read as safetensors", hint="copy it again") from error
    return _checkpoint(path, found, "")


def _checkpoint(path: Path, found: Mapping[str, Tensor], under: str) -> Checkpoint:
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found.values()})
    state = {key: tensor.float() for key, tensor in renamed(found, _plain, path).items()}
    return Checkpoint(path, state, under, tuple(dtypes))


def renamed(found: Mapping[str, Tensor], rename: Callable[[str], str], path: Path) -> dict[str, Tensor]:
    """Tensors under other names."""
    state: dict[str, Tensor] = {}
    for key, tensor in found.items():
        if rename(key) in state:
            raise BundleInvalid(
                f"{path}: {rename(key)[:100]}: two tensors are this one, under two names",
                hint="save the state dict of the model alone",
                facts={"field": key[:100]},
            )
        state[rename(key)] = tensor
    return state


def _unwrap(loaded: Any) -> tuple[dict[str, Tensor] | None, str]:
    """The state dict in the loaded object, at most one level down, and its key."""
    if not isinstance(loaded, Mapping) or not loaded:
        return None, ""
    inner = [(loaded[name], name) for name in WRAPPERS if isinstance(loaded.get(name), Mapping)]
    for candidate, name in ((loaded, ""), *inner):
        if candidate and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items()):
            return dict(candidate), name
    return None, ""


def _plain(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _optimiser(path: Path) -> BundleInvalid:
    return BundleInvalid(
        f"{path}: it holds the state of an optimiser, not weights",
        hint="the public code writes the weights beside it: ema_0.9999_STEP.pt, or modelSTEP.pt",
    )


INDEX = "model_index.json"
SCHEDULER = "scheduler"
# Components that are networks, with the supported classes.
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DModel",),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),
}
PIXELS = tuple(kind for kinds in NETWORKS.values() for kind in kinds)
SUPPORTED = "a pipeline of pixels is read: a UNet2DModel or DiTTransformer2DModel and a scheduler"
MAX_JSON_BYTES = 16 << 20
_ADAPTER = re.compile(
    r"(?:.*(?<![fp])lora.*|adapter_model.*)\.(?:safetensors|bin|pt|pth)|adapter_config\.json", re.IGNORECASE
)
# Tensors of adapters as peft, diffusers, kohya and LyCORIS call them.
_ADAPTED = re.compile(r"(?:^|[._])(?:lora(?:[._]|$)|hada_w\d|lokr_w\d)", re.IGNORECASE)
_AUTOENCODERS = re.compile(r"VQ|Autoencoder|VAE", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Information on a pipeline from its folder."""

    labels: Mapping[int, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_pipeline(folder: Path) -> Pipeline:
    """The information on a folder's network, if the whole pipeline can be imported."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    components = {**dict(_lying(folder)), **dict(_listed(index))}
    _refuse_adapters(folder)
    networks = [name for name, kinds in NETWORKS.items() if components.get(name) in kinds]
    averaged = {name: kind for name, kind in components.items() if kind in PIXELS and name not in NETWORKS}
    taken = {*networks[:1], *averaged, SCHEDULER}
    others = {name: kind for name, kind in components.items() if name not in taken}
    if others:
        raise _no_pixels(folder, index, components, others)
    if averaged.keys() & dict(_listed(index)).keys():
        raise _no_pixels(folder, index, components, averaged)
    beside = f"{networks[0]}/" if networks else "the network"
    remarks = tuple(f"{name}/ beside {beside} is not read" for name in sorted(averaged))
    if index:
        return Pipeline(_labels(index, folder), remarks)
    unchecked = (
        f"there is no {INDEX}: whether the network belongs to a pipeline with an autoencoder, whose latents are no "
        "pictures, could not be checked"
    )
    return Pipeline(remarks=remarks, warnings=(unchecked,))


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise FileMissing(
            f"there is no file {path}", hint="name the folder of the pipeline, with unet/ in it"
        ) from error
    if len(content) > MAX_JSON_BYTES:
        raise BundleInvalid(f"{path}: it is larger than {MAX_JSON_BYTES:,} bytes", hint="copy it again")
    try:
        read = parse_json(content)
    except ValueError as error:
        raise BundleInvalid(f"{path}: it is not JSON", hint="copy it again") from error
    if not isinstance(read, dict):
        raise BundleInvalid(f"{path}: it is not a JSON object", hint="copy it again")
    return read


def whole_pipeline(folder: Path) -> Path | None:
    above = folder.resolve().parent
    return above if not (folder / INDEX).is_file() and (above / INDEX).is_file() else None


def _listed(index: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or value[1] is None:
            continue
        yield name, str(value[1])


def _lying(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and class of each component that lies in a sub-folder with a config.json."""
    for path in sorted(folder.glob("*/config.json")):
        said = read_json(path)
        kind = said.get("_class_name")
        if kind is None and isinstance(said.get("architectures"), list):
            kind = ", ".join(map(str, said["architectures"]))
        if kind:
            yield path.parent.name, str(kind)


def _refuse_adapters(folder: Path) -> None:
    found = sorted((*folder.glob("*"), *folder.glob("*/*")))
    for path in found:
        if _ADAPTER.fullmatch(path.name) or _holds_adapter(path):
            raise SettingsInvalid(
                f"{path} is an adapter (LoRA): it changes what the network computes, and is not read",
                hint="merge it with the library (load_lora_weights, fuse_lora, save_pretrained), or move the file away",
                facts={"field": path.name[:100]},
            )


def _holds_adapter(path: Path) -> bool:
    """Whether a file of safetensors has tensors of an adapter; only its header is read."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as opened:
            return any(_ADAPTED.search(name) for name in opened.keys())  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError):
        return False  # whoever reads it as weights says what is wrong


def _no_pixels(
    folder: Path, index: Mapping[str, Any], components: Mapping[str, str], others: Mapping[str, str]
) -> SettingsInvalid:
    """The error for another kind of pipeline, with what it is."""
    kind = index.get("_class_name")
    named = f"{folder}: " + (f"{_word(kind)} is " if kind else "it is ") + _family(components)
    parts = ", ".join(f"{name} ({_word(cls)})" for name, cls in others.items())
    return SettingsInvalid(
        f"{named}: {parts} {'belongs' if len(others) == 1 else 'belong'} to it and cannot be imported",
        hint=SUPPORTED,
        facts={"field": next(iter(others))[:100]},
    )


def _family(components: Mapping[str, str]) -> str:
    """What kind of pipeline has these components."""
    if components.get("transformer", PIXELS[-1]) not in PIXELS:
        return "another diffusion transformer"
    if any(_AUTOENCODERS.search(kind) for kind in components.values()):
        return "a latent-diffusion pipeline"
    if any(name.startswith(("text_encoder", "tokenizer", "prior")) for name in components):
        return "a pipeline with a text encoder"
    return "a pipeline with more than a network of pixels"


def _labels(index: Mapping[str, Any], folder: Path) -> dict[int, str]:
    said = index.get("id2label") or {}
    try:
        return {int(number): str(name)[:200] for number, name in said.items()}
    except (AttributeError, ValueError) as error:
        raise BundleInvalid(f"{folder / INDEX}: id2label is no table of numbers and names") from error


def _word(value: object) -> str:
    return str(value[-1] if isinstance(value, list) and value else value)[:80]


@dataclass(frozen=True, slots=True)
class Fact:
    """One setting of an imported model."""

    key: str
    value: str
    basis: str


def import_note(where: str, warnings: tuple[str, ...] = ()) -> str:
    said = f"imported weights: {where} does not say what they were trained on"
    return "; ".join((said, *warnings))[:4000]


@dataclass(frozen=True, slots=True)
class Imported:
    """A model read from other code's files, not yet a bundle."""

    manifest: Manifest
    state: Mapping[str, Tensor] = field(repr=False)
    facts: tuple[Fact, ...]
    ignored: Mapping[str, str]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def of_files(self) -> bool:
        return any(fact.basis == "scheduler_config.json" for fact in self.facts)

    @property
    def bundle(self) -> Bundle:
        return make_bundle(self.manifest, self.state, source=self.manifest.name)


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

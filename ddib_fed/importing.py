"""What an importer of foreign checkpoints needs: safe reading of weights, and the parts of a model's manifest.

An importer is an entry point of the group `ddib_fed.importers`: a module, or an object, with `recognises`, `read` and
`uses` (see `Importer`). It reads a file or folder to an `Imported`; everything else is done here.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ddib_fed.data.study import IntensityRule
from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid, FileMissing, UsageError
from ddib_fed.extensions import loaded
from ddib_fed.model import Model
from ddib_fed.models.bundle import Bundle, make_bundle, misfits, save_bundle
from ddib_fed.models.manifest import (
    DataNote,
    LatentSpace,
    Manifest,
    PictureFormat,
    Training,
    intensity_fields,
)
from ddib_fed.models.units import Normalisation
from ddib_fed.names import check_domain
from ddib_fed.networks.build import network_shapes
from ddib_fed.networks.config import (
    AnyConfig,
    ClassifierConfig,
    LibraryConfig,
    MlpConfig,
    SyntheticConfig,
    UNetConfig,
)
from ddib_fed.training.sources import own_samples, own_volumes

__all__ = [
    "Bundle", "ClassifierConfig", "Fact", "ImportOptions", "Imported", "Importer", "LatentSpace", "LibraryConfig",
    "Manifest", "MlpConfig", "Normalisation", "Parameterisation", "PictureFormat", "ScheduleConfig", "SyntheticConfig",
    "Training", "UNetConfig", "WeightsFile", "import_note", "intensity_fields", "loaded_checkpoint", "make_bundle",
    "network_shapes", "read_tensors", "refused", "renamed", "require_fit", "schedule_from_config", "states_in",
    "unwrapped",
]  # fmt: skip

CHECKED = 8
Reader = Callable[[Manifest], Iterable[NDArray[np.float32]]]  # own samples (C, *sides) in [-1, 1]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of an import; None means that the value is read from the files.

    Attributes
    ----------
    domain, name : str
        Of the bundle.
    flags : str
        The public code's flags that it was trained with.
    classifier, synthetic : bool
        Whether it is the public code's noisy classifier, or its 2-D network.
    fit
        How pictures of another size are fitted; None for crop, as the public code.
    soften_sigma, scale_factor : float
        Noise level of softening before encoding, None for 0; factor of latents.
    check : Path or callable
        Own samples that an autoencoder is to reconstruct.
    size, spacing : tuple
        Sides of a sample, pixels or voxels; millimetres between voxels, x, y, z.
    intensity, values
        How values of volumes and maps become numbers, as of `ddib translate`; black and white in training.
    modality, axes : str
        Of MAISI; of the network's arrays, such as RAS.
    """

    domain: str = "imported"
    name: str = ""
    flags: str = ""
    classifier: bool = False
    synthetic: bool = False
    fit: Literal["pad", "crop", "resize"] | None = None
    soften_sigma: float | None = None
    scale_factor: float | None = None
    check: Path | Reader | None = None
    size: tuple[int, ...] | None = None
    intensity: str | None = None
    values: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    modality: str | None = None
    axes: str | None = None

    def __post_init__(self) -> None:
        try:
            check_domain(self.domain)
        except ValueError as error:
            raise UsageError(f"--domain: {error}") from error
        if self.intensity is not None:
            object.__setattr__(self, "intensity", IntensityRule.parse(self.intensity).text)

    def samples(self, manifest: Manifest) -> Iterable[NDArray[np.float32]]:
        """Yield own samples (C, *sides) in [-1, 1] of `check`."""
        if callable(self.check):
            return self.check(manifest)
        assert self.check is not None
        if manifest.sample_kind == "volume":
            return own_volumes(manifest, self.check, CHECKED)
        return own_samples(manifest, self.check, CHECKED, CHECKED).mixed()

    def picture(self) -> PictureFormat:
        """Return how pictures become samples, if no file says it."""
        return PictureFormat(
            fit=self.fit or "crop", **intensity_fields(self.intensity) if self.intensity else {}
        )

    def refuse(self, names: Collection[str], why: str) -> None:
        """Raise UsageError if one of these fields is set."""
        for each in fields(self):
            if each.name in names and getattr(self, each.name) != each.default:
                flag = "range" if each.name == "values" else each.name.replace("_", "-")
                raise UsageError(f"--{flag} {why}", hint="leave it out")


class Fact(NamedTuple):
    """A setting of an imported model, and its origin."""

    key: str
    value: str
    basis: str


@dataclass(frozen=True, slots=True)
class Imported:
    """A model read from other code's files, not yet a bundle; SettingsInvalid if there is no such schedule.

    Attributes
    ----------
    manifest
        Nested parts may be given as dicts: ``Manifest(network={"kind": "unet", ...}, ...)``.
    state : Mapping
        Its tensors by the names of the network, float32.
    facts, ignored
        Its settings with their origins, to be shown; settings without effect, with the reason.
    remarks, warnings
        Sentences.
    autoencoder : Imported or None
        Of a model of latents.
    """

    manifest: Manifest
    state: Mapping[str, Tensor] = field(repr=False)
    facts: tuple[Fact, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    autoencoder: Imported | None = None

    def __post_init__(self) -> None:
        schedule_from_config(self.manifest.schedule)

    @classmethod
    def read(cls, path: str | Path, options: ImportOptions | None = None) -> Imported:
        """Read a checkpoint by the first importer that recognises it, third parties' first.

        An importer that cannot be loaded is left out, with a warning.

        Raises
        ------
        BundleInvalid, FileMissing, SettingsInvalid
            Files cannot be read, or do not fit the network; a setting cannot be computed exactly, or no file has it.
        UsageError
            An option has no effect on such a checkpoint, or no importer recognises it.
        """
        path, options = Path(path), options or ImportOptions()
        importers, broken = loaded("ddib_fed.importers")
        importer: Importer
        for name, importer in importers.items():
            if importer.recognises(path):
                idle = {option.name for option in fields(options)} - {"domain", "name", *importer.uses}
                options.refuse(idle, f"says nothing of {path}, which is read as of {name}")
                imported = importer.read(path, options)
                return replace(imported, warnings=(*imported.warnings, *broken))
        known = ", ".join(importers) or "none: install the package again"
        raise UsageError("; ".join((f"no importer recognises {path}", *broken)), hint=f"there are {known}")

    def bundle(self, source: str = "the new model") -> Bundle:
        """Return the model in memory; raise BundleInvalid, naming `source`, unless the tensors fit the network."""
        encoder = None if self.autoencoder is None else self.autoencoder.bundle(source)
        return make_bundle(self.manifest, self.state, autoencoder=encoder, source=source)

    def save(self, out: str | Path, *, overwrite: bool = False) -> Model:
        """Write a bundle; raise AlreadyExists, or BundleInvalid for tensors that do not fit the network."""
        with TemporaryDirectory() as folder:
            beside = None
            if self.autoencoder is not None:
                beside = Path(folder) / "autoencoder"
                save_bundle(beside, self.autoencoder.manifest, self.autoencoder.state)
            saved = save_bundle(Path(out), self.manifest, self.state, autoencoder=beside, overwrite=overwrite)
        return Model(saved, Path(out))


class Importer(Protocol):
    """Reads checkpoints of one kind; a module or an object, named by an entry point of `ddib_fed.importers`.

    Attributes
    ----------
    uses
        Names of the `ImportOptions` that say something of such a checkpoint; others are refused.

    Examples
    --------
    A module `mine/importer.py`, and in pyproject.toml ``[project.entry-points."ddib_fed.importers"]`` with
    ``mine = "mine.importer"``:

    >>> from ddib_fed.importing import Imported, Manifest, read_tensors
    >>> uses = ("soften_sigma",)
    >>> def recognises(path):
    ...     return path.suffix == ".mine"
    >>> def read(path, options):
    ...     network = {"kind": "mlp", "dim": 2, "width": 16, "blocks": 1}
    ...     manifest = Manifest(name=path.stem, domain=options.domain, sample_shape=(2,), network=network)
    ...     return Imported(manifest, read_tensors(path).state)
    """

    uses: Collection[str]

    def recognises(self, path: Path) -> bool:
        """Return whether a file or folder looks like such a checkpoint; raises nothing."""

    def read(self, path: Path, options: ImportOptions) -> Imported:
        """Read a checkpoint; raises as `Imported.read`. Pickles only by `read_tensors` or `loaded_checkpoint`."""


def import_note(where: str, warnings: tuple[str, ...]) -> DataNote:
    """Return the note on the data of imported weights."""
    sentence = f"imported weights: {where} does not say what they were trained on"
    return DataNote(note="; ".join((sentence, *warnings))[:4000])


def refused(source: str, key: str, problem: str, hint: str) -> BundleInvalid:
    """Return the error of a tensor or setting."""
    return BundleInvalid(f"{source}: {key[:100]}: {problem}", hint=hint, facts={"field": key[:100]})


def require_fit(network: AnyConfig, state: Mapping[str, Tensor], source: str, hint: str) -> None:
    """Raise BundleInvalid unless the tensors fit the network."""
    for key, problem in misfits(network, state):
        raise refused(source, key, problem, hint)


# Names under which training scripts keep the state dict, averaged weights first.
WRAPPERS = (
    "ema", "ema_state_dict", "model_ema", "ema_model", "state_dict", "model_state_dict", "model", "network",
    "unet_state_dict",
)  # fmt: skip
# What the public training code writes: ema_0.9999_500000.pt, model500000.pt and opt500000.pt.
_AVERAGED = re.compile(r"ema_(0?\.\d+)_(\d+)\.pt")
_RAW = re.compile(r"model(\d+)\.pt")
_OPTIMISER = re.compile(r"opt\d*\.pt")
# Prefixes of tensors: by parallel runs and torch.compile, and by Lightning and other trainers.
_WRAPPED = re.compile(r"(?<![^.])(?:module|_orig_mod)\.")
_TRAINED = re.compile(r"^(?:diffusion\.|model\.(?!diffusion_model\.))+")


class WeightsFile(NamedTuple):
    """Tensors in float32, the optimiser steps in the file's name, and remarks on the file."""

    state: Mapping[str, Tensor]
    steps: int
    remarks: tuple[str, ...]


def read_tensors(path: Path) -> WeightsFile:
    """Read the state dict in a file of safetensors or in a pickled checkpoint; only tensors are read."""
    if not path.is_file():
        raise FileMissing(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            tensors = safetensors.torch.load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise BundleInvalid(f"{path}: it cannot be read as safetensors", hint="copy it again") from error
    else:
        tensors = _unpickled(path)
    averaged, raw = _AVERAGED.fullmatch(path.name), _RAW.fullmatch(path.name)
    remarks = []
    if averaged:
        remarks.append(f"weights averaged over training (rate {averaged[1]}, step {averaged[2]})")
    if raw:
        remarks.append("weights as they were trained; the averaged ones, ema_*.pt beside them, draw better")
    plain = renamed(unwrapped(tensors, path), lambda key: _TRAINED.sub("", key), path)
    steps = int(averaged[2]) if averaged else int(raw[1]) if raw else 0
    return WeightsFile({key: tensor.float() for key, tensor in plain.items()}, steps, tuple(remarks))


def loaded_checkpoint(path: Path) -> Any:
    """Load a pickle, of which only tensors and plain values are read."""
    if not path.is_file():
        raise BundleInvalid(f"{path}: it is no regular file", hint="copy the checkpoint itself there")
    try:
        # Mapped, so that a checkpoint of gigabytes is not in memory twice; older formats cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # on damaged bytes an unpickler raises any exception, IndexError included
        raise BundleInvalid(
            f"{path}: it is no checkpoint that can be read safely (weights only)",
            hint="save the state dict alone: torch.save(model.state_dict(), FILE)",
        ) from error


def _unpickled(path: Path) -> dict[str, Tensor]:
    loaded = None if _OPTIMISER.fullmatch(path.name) else loaded_checkpoint(path)
    if loaded is None or (isinstance(loaded, Mapping) and "param_groups" in loaded):
        raise BundleInvalid(
            f"{path}: it holds the state of an optimiser, not weights",
            hint="the public code writes the weights beside it: ema_0.9999_STEP.pt, or modelSTEP.pt",
        )
    for state in states_in(loaded):
        return state
    raise BundleInvalid(
        f"{path}: it holds no state dict", hint="save one: torch.save(model.state_dict(), FILE)"
    )


def states_in(loaded: Any) -> Iterator[dict[str, Tensor]]:
    """Yield the state dicts in a checkpoint, at most one level down: averaged weights first."""
    if isinstance(loaded, Mapping):
        for candidate in (loaded, *map(loaded.get, dict.fromkeys((*WRAPPERS, *loaded)))):
            if not isinstance(candidate, Mapping) or not candidate:
                continue
            if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items()):
                yield dict(candidate)


def unwrapped(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors without the prefixes of parallel runs and torch.compile."""
    return renamed(found, lambda key: _WRAPPED.sub("", key), path)


def renamed(found: Mapping[str, Tensor], rename: Callable[[str], str], path: Path) -> dict[str, Tensor]:
    """Return the tensors under new names; raise BundleInvalid if two get one name."""
    state: dict[str, Tensor] = {}
    for key, tensor in found.items():
        if rename(key) in state:
            problem = "two tensors are this one, under two names"
            raise refused(str(path), rename(key), problem, "save the state dict of the model alone")
        state[rename(key)] = tensor
    return state

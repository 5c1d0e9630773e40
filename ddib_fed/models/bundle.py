"""A model on disk: a folder of manifest.json and model.safetensors, verified by digest before it is used.

The manifest names the weights' SHA-256 (and what the autoencoder beside them computes), and the bundle's digest is that
of its canonical JSON. The loaded bytes are the verified ones, and a folder appears completely or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from ddib_fed.datasets import domain_name
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.guidance import Classifier, Tiled, starts
from ddib_fed.diffusion.schedule import LearnedLegs, Schedule, schedule_from_config
from ddib_fed.errors import (
    AlreadyExists,
    BundleInvalid,
    DomainNotFound,
    FileMissing,
    InputError,
    ModelNotFound,
    SettingsInvalid,
    UsageError,
)
from ddib_fed.files import appearing, first_problem, parse_json, read_small, sync_folder, write_file
from ddib_fed.models.catalogue import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    require_models,
    require_shipped,
    shipped_folder,
    shipped_names,
)
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.sidecars import Allowances, PrivacyReport, Sidecar, Tuned
from ddib_fed.names import nearest
from ddib_fed.networks.build import network_shapes, network_with
from ddib_fed.networks.config import AnyConfig, LibraryConfig
from ddib_fed.networks.placement import placed

Beside = TypeVar("Beside", bound=Sidecar)
MAX_MANIFEST_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 8 << 30
REMAKE = "train or import the model again, or copy the whole folder again"


def parse_manifest(data: bytes, source: str, file: str = MANIFEST_FILE) -> Manifest:
    """Parse the manifest in `data` and verify its digest."""
    try:
        fields = parse_json(data)
    except ValueError as error:
        raise invalid(source, file, "", "it is not JSON") from error
    if not isinstance(fields, dict):
        raise invalid(source, file, "", "it is not a JSON object")
    digest = fields.pop("digest", None)
    try:
        manifest = Manifest.model_validate(fields)
        schedule_from_config(manifest.schedule)
    except ValidationError as error:
        raise invalid(source, file, *first_problem(error)) from error
    except SettingsInvalid as error:
        raise invalid(source, file, "schedule", error.detail) from error
    if digest != manifest.digest():
        raise invalid(source, file, "digest", "the manifest was changed after it was written")
    return manifest


def misfits(network: AnyConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield each tensor of a state dict that does not fit the network, with the problem."""
    expected = network_shapes(network)
    for key in dict.fromkeys((*expected, *state)):
        if key not in expected:
            yield key, "the network has no such tensor"
        elif key not in state:
            yield key, "the tensor is missing"
        elif state[key].shape != expected[key].shape:
            yield key, f"its shape is {tuple(state[key].shape)}, the network's {tuple(expected[key].shape)}"
        elif not state[key].is_meta and not torch.isfinite(state[key]).all():
            yield key, "it holds NaN or infinity"


def read_file(folder: Path, name: str, max_bytes: int, source: str) -> bytes:
    try:
        return read_small(folder / name, hint=REMAKE, max_bytes=max_bytes)
    except (FileMissing, InputError) as error:
        if name == MANIFEST_FILE and isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            problem = f"there is no model bundle in {source}"
            raise ModelNotFound(problem, hint="train one: ddib model train") from error
        problem = "the file is missing" if isinstance(error, FileMissing) else error.detail
        raise invalid(source, name, "", problem, hint=error.hint) from error


def invalid(source: str, file: str, name: str, problem: str, *, hint: str = REMAKE) -> BundleInvalid:
    """The error for a problem with a file of the bundle `source`, or with the field or tensor `name` in it."""
    where = f"{source}: {file}" + (f", {name}" if name else "")
    facts: dict[str, Any] = {"file": file, "field": name[:100]} if name else {"file": file}
    return BundleInvalid(f"{where}: {problem}", hint=hint, facts=facts)


KINDS: Final = ("cpu", "cuda", "mps")


def device_problem(name: str) -> str | None:
    """Explain why networks cannot run on a device here; return None if they can."""
    try:
        kind = torch.device(name).type
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        return f"torch cannot compute on it here: {str(error).partition(chr(10))[0]}"
    return None if kind in KINDS else f"networks run on {', '.join(KINDS)} or cuda:N"


BESIDE = (Tuned.file, Allowances.file, PrivacyReport.file)
"""Files beside the weights that name them, and hold for no others."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified model; `state` is float32 on the CPU. `digest` is that of the manifest, which names the weights'.
    `tile` has the sides of what the network takes, where the samples are larger scenes.
    """

    manifest: Manifest
    state: Mapping[str, Tensor] = field(repr=False)
    digest: str
    tile: tuple[int, ...] | None = None
    tuned: Tuned | None = None
    allowances: Allowances | None = None
    privacy: PrivacyReport | None = None
    autoencoder: "Bundle | None" = None

    @property
    def learned(self) -> LearnedLegs:
        name = self.manifest.name
        return LearnedLegs(name) if self.tuned is None else self.tuned.learned(name)

    @property
    def schedule(self) -> Schedule:
        return schedule_from_config(self.manifest.schedule)

    def network(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> nn.Module:
        """Build a new network with the weights, in evaluation mode."""
        network = network_with(self.manifest.network, self.state, dtype, device)
        return network.eval().requires_grad_(requires_grad=False)

    def denoiser(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Denoiser:
        """Its network as a function that predicts v, of tiles where samples are scenes (see `over_samples`); it
        computes in `dtype`, inputs and outputs keep their own.
        """
        self._must_be("generator")
        network = self.network(dtype, device)
        run = placed(network)
        return Denoiser(network, self.manifest.parameterisation, self.manifest.time_input, run)

    def over_samples(self, denoiser: Denoiser) -> Denoiser:
        """Let a denoiser work on whole samples: itself, or in overlapping tiles for larger scenes."""
        if self.tile is None:
            return denoiser
        return Tiled(denoiser, self.tile, self.manifest.latent_shape[1:])

    def of_scenes(self, *sides: int) -> "Bundle":
        """The same model, of the same digest, for pictures or volumes of that size in overlapping tiles."""
        self._must_be("generator")
        made = self.manifest
        if made.sample_kind == "point":
            raise SettingsInvalid(f"{made.name} is a model of points, which have no size")
        tile, factor = self.tile or made.latent_shape[1:], self.factor
        if len(sides) != len(tile):
            raise SettingsInvalid(
                f"{made.name} is a model of {made.sample_kind}s, which have {len(tile)} sides"
            )
        inner = tuple(-(-side // factor) for side in sides)
        for length, side in zip(inner, tile, strict=True):
            starts(length, side)
        update: dict[str, Any] = {"sample_shape": (made.sample_shape[0], *sides)}
        if made.latents is not None:
            update["latents"] = made.latents.model_copy(update={"shape": (made.latents.shape[0], *inner)})
        return replace(self, manifest=made.model_copy(update=update), tile=tile)

    @property
    def factor(self) -> int:
        """How much shorter a side of a latent is than that of its sample; of an autoencoder, than of what it takes."""
        network = (self.autoencoder or self).manifest.network
        return network.divisor if isinstance(network, LibraryConfig) and network.is_autoencoder else 1

    def classifier(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Classifier:
        self._must_be("classifier")
        return Classifier(self.network(dtype, device), self.manifest.time_input)

    def _must_be(self, role: str) -> None:
        if self.manifest.role != role:
            raise SettingsInvalid(f"the model {self.manifest.name} is a {self.manifest.role}, not a {role}")


def make_bundle(
    manifest: Manifest,
    state: Mapping[str, Tensor],
    *,
    autoencoder: Bundle | None = None,
    source: str = "the new model",
) -> Bundle:
    """Make a bundle of `manifest` with the digest and size of `state` filled in."""
    tensors = _checked(manifest, state, source)
    _check_autoencoder(manifest, autoencoder, source)
    made = _bundle(manifest, tensors, hashlib.sha256(safetensors.torch.save(tensors)).hexdigest())
    return replace(made, autoencoder=autoencoder)


def save_bundle(
    path: Path,
    manifest: Manifest,
    state: Mapping[str, Tensor],
    *,
    autoencoder: Path | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle into a folder, which appears whole or not at all, and return it as `load_bundle` reads it.

    The manifest's `weights_sha256` and `parameters` are replaced by those of `state`, whose dtypes are kept.
    `autoencoder` is the folder of the one that the manifest names; it is copied.
    """
    if path.exists() and not overwrite:
        raise AlreadyExists(f"{path} exists", hint="choose another folder, or overwrite it")
    tensors = _checked(manifest, state, str(path))
    encoder = None if autoencoder is None else load_autoencoder(autoencoder)
    _check_autoencoder(manifest, encoder, str(path))
    with appearing(path) as staging:
        safetensors.torch.save_file(tensors, staging / WEIGHTS_FILE)
        (staging / WEIGHTS_FILE).chmod(0o600)
        with (staging / WEIGHTS_FILE).open("r+b") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        bundle = replace(_bundle(manifest, tensors, digest), autoencoder=encoder)
        if autoencoder is not None:
            for name, own in zip(AUTOENCODER, autoencoder_files(autoencoder), strict=True):
                write_file(staging / name, (autoencoder / own).read_bytes(), private=True)
        write_file(staging / MANIFEST_FILE, manifest_text(bundle.manifest), private=True)
    return bundle


AUTOENCODER: Final = ("autoencoder.json", "autoencoder.safetensors")
"""Manifest and weights of the autoencoder beside a model."""


def autoencoder_files(folder: Path) -> tuple[str, str]:
    """The files of the autoencoder in a folder: of that beside a model, else those of the bundle itself."""
    beside = (folder / AUTOENCODER[0]).is_file()
    return AUTOENCODER if beside else (MANIFEST_FILE, WEIGHTS_FILE)


def _check_autoencoder(manifest: Manifest, autoencoder: Bundle | None, source: str) -> None:
    """Raise unless the autoencoder is the one that the manifest names."""
    latents, file = manifest.latents, AUTOENCODER[0]
    if latents is None:
        return
    if autoencoder is None or autoencoder.manifest.role != "autoencoder":
        raise invalid(source, file, "", "the model works on latents, and its autoencoder is missing")
    made, network = autoencoder.manifest, autoencoder.manifest.network
    if made.autoencoder_sha256 != latents.autoencoder_sha256:
        raise invalid(source, file, "", "it is another autoencoder than the model was trained with")
    assert isinstance(network, LibraryConfig)
    sides = tuple(side * network.divisor for side in latents.shape[1:])
    if (latents.shape[0], sides) != (network.latent_channels, manifest.sample_shape[1:]):
        raise invalid(source, file, "", f"its latents of {manifest.sample_shape} are not {latents.shape}")


def _checked(manifest: Manifest, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors as they are written, after the check that they are those of the manifest's network."""
    for key, problem in misfits(manifest.network, state):
        raise invalid(source, WEIGHTS_FILE, key, problem)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in sorted(state.items())}


def _bundle(manifest: Manifest, tensors: Mapping[str, Tensor], weights_sha256: str) -> Bundle:
    parameters = sum(tensor.numel() for tensor in tensors.values())
    named = manifest.model_copy(update={"weights_sha256": weights_sha256, "parameters": parameters})
    own = {key: tensor.to(torch.float32, copy=True) for key, tensor in tensors.items()}
    return Bundle(named, own, named.digest())


def manifest_text(manifest: Manifest) -> bytes:
    fields = manifest.model_dump(mode="json")
    return (json.dumps({"digest": manifest.digest(), **fields}, indent=2) + "\n").encode()


def amend_bundle(path: Path, **fields: Any) -> Bundle:
    """Change fields of the manifest of the bundle in folder `path`, and its digest; its weights stay."""
    bundle = load_bundle(path)
    manifest = Manifest.model_validate({**dict(bundle.manifest), **fields})
    _replace(path, MANIFEST_FILE, manifest_text(manifest))
    return replace(bundle, manifest=manifest, digest=manifest.digest())


def put_beside(folder: Path, found: Sidecar) -> None:
    """Write a file beside the weights of the bundle in `folder`; its digest does not change."""
    _replace(folder, found.file, found.text())


def _replace(folder: Path, name: str, content: bytes) -> None:
    """Write a file, whole or not at all; it is readable by whoever can read the manifest."""
    staged = folder / f".{name}.new"
    write_file(staged, content, private=True)
    shutil.copymode(folder / MANIFEST_FILE, staged)
    staged.replace(folder / name)
    sync_folder(folder)


def autoencoder_folder(which: str, *, required: bool = True) -> Path | None:
    """The folder with the autoencoder of a model that ships, or of a bundle; None where there is none, nor needed."""
    name = shipped_name(which)
    folder = Path(which) if name is None else shipped_folder() / name
    return folder if required or (folder / AUTOENCODER[0]).is_file() else None


def load_autoencoder(folder: Path, source: str = "") -> Bundle:
    """Load the autoencoder in a folder: a bundle of its own, or the one beside a model."""
    source, files = source or str(folder), autoencoder_files(folder)
    bundle = Bundle(*_read_model(folder, source, files))
    if bundle.manifest.role != "autoencoder":
        raise invalid(
            source, files[0], "role", f"{bundle.manifest.name} is a {bundle.manifest.role}, no autoencoder"
        )
    return bundle


def load_bundle(folder: Path, source: str = "", *, without: Collection[str] = ()) -> Bundle:
    """Read and verify the bundle in a folder; files of `BESIDE` that are named in `without` are not read."""
    source = source or str(folder)
    manifest, state, digest = _read_model(folder, source, (MANIFEST_FILE, WEIGHTS_FILE))

    def beside(kind: type[Beside]) -> Beside | None:
        return None if kind.file in without else read_beside(kind, folder, manifest, source)

    there = manifest.latents is not None and (folder / AUTOENCODER[0]).is_file()
    autoencoder = load_autoencoder(folder, source) if there else None
    _check_autoencoder(manifest, autoencoder, source)
    own = beside(Tuned), beside(Allowances), beside(PrivacyReport)
    return Bundle(manifest, state, digest, None, *own, autoencoder)


def _read_model(folder: Path, source: str, files: tuple[str, str]) -> tuple[Manifest, dict[str, Tensor], str]:
    """The manifest, the weights and the digest of a bundle, all verified."""
    manifest_file, weights_file = files
    content = read_file(folder, manifest_file, MAX_MANIFEST_BYTES, source)
    manifest = parse_manifest(content, source, manifest_file)
    weights = read_file(folder, weights_file, MAX_WEIGHTS_BYTES, source)
    if hashlib.sha256(weights).hexdigest() != manifest.weights_sha256:
        raise invalid(
            source, weights_file, "weights_sha256", "the weights are not those that the manifest names"
        )
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise invalid(source, weights_file, "", "it is not a safetensors file") from error
    # One by one, to avoid a second copy of all.
    state = {key: tensors.pop(key).float() for key in list(tensors)}
    for key, problem in misfits(manifest.network, state):
        raise invalid(source, weights_file, key, problem)
    return manifest, state, manifest.digest()


def read_beside(kind: type[Beside], folder: Path, manifest: Manifest, source: str) -> Beside | None:
    """A file beside the weights, checked; None where there is none."""
    if not (folder / kind.file).is_file():
        return None
    return kind.parse(read_file(folder, kind.file, kind.max_bytes, source), manifest.weights_sha256, source)


CALIBRATION_FILE = "calibration.json"  # of a shipped model that was trained with one


def pretrained(domain: str) -> Bundle:
    require_shipped(domain)
    return load_bundle(shipped_folder() / domain, f"pretrained {domain}")


def shipped_calibration(name: str) -> bytes | None:
    file = shipped_folder() / name / CALIBRATION_FILE
    return file.read_bytes() if name in shipped_names() and file.is_file() else None


def open_bundle(which: str) -> Bundle:
    """Open the shipped model of a domain given by name or index, else the bundle in a folder."""
    domain = shipped_name(which)
    if domain is not None:
        return pretrained(domain)
    if Path(which).exists():
        return load_bundle(Path(which))
    if Path(which).name == which:
        require_models()
    if close := nearest(which, shipped_names()):
        raise ModelNotFound(
            f"{which!a} is neither a model that ships nor a folder",
            hint=f"did you mean {close}? `ddib model list` lists the models that ship",
        )
    return load_bundle(Path(which))


def shipped_name(which: str) -> str | None:
    """The domain of the shipped model that `which` names; None when it is to be a folder."""
    try:
        domain = domain_name(which)
    except DomainNotFound:
        domain = which
    if domain not in shipped_names():
        return None
    beside = False
    with suppress(PermissionError):
        beside = (Path(which) / MANIFEST_FILE).is_file()
    if beside:
        raise UsageError(
            f"{which} is a model that ships, and a bundle in a folder here",
            hint=f"./{which} is the folder; to have the one that ships, call the folder otherwise",
        )
    return domain

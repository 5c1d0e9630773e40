"""What models there are to choose from, read from their manifests alone, which are not verified; imports no torch."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddib_fed.errors import AlreadyExists, BundleInvalid, ModelNotFound, missing
from ddib_fed.files import appearing, copy_folder, model_folder, read_json
from ddib_fed.names import nearest

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "model.safetensors"
STEPS_FILE = "steps.json"


@dataclass(frozen=True, slots=True)
class Listed:
    name: str
    domain: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    size_bytes: int
    evaluations: tuple[int, ...]
    digest: str


def shipped_folder() -> Path:
    return Path(__file__).parent / "pretrained"


def shipped_names() -> tuple[str, ...]:
    folder = shipped_folder()
    return tuple(sorted(e.name for e in folder.iterdir() if e.is_dir())) if folder.is_dir() else ()


def require_models() -> None:
    """Raise ExtraMissing unless the models that ship are installed: a client alone has none."""
    if not shipped_folder().is_dir():
        raise missing("models", "ddib-fed-models", "the models that ship are not installed")


def shipped_models() -> tuple[Listed, ...]:
    require_models()
    return tuple(look(shipped_folder() / name, name) for name in shipped_names())


def look(folder: Path, source: str) -> Listed:
    manifest = read_json(folder / MANIFEST_FILE) or {}
    try:
        return Listed(
            name=str(manifest["name"]),
            domain=str(manifest["domain"]),
            kind=str(manifest["sample_kind"]),
            shape=tuple(int(size) for size in manifest["sample_shape"]),
            parameters=int(manifest["parameters"]),
            size_bytes=sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file()),
            evaluations=_learned(read_json(folder / STEPS_FILE) or {}),
            digest=str(manifest["digest"]),
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        problem = f"{source}: {MANIFEST_FILE} cannot be read"
        raise BundleInvalid(problem, hint="install the package, or copy the model, again") from error


def require_shipped(name: str) -> None:
    require_models()
    known = shipped_names()
    if name not in known:
        close = f"did you mean {near}? " if (near := nearest(name, known)) else ""
        problem = f"no model of {name!r} ships with the package"
        raise ModelNotFound(problem, hint=f"{close}There are: {', '.join(known)}")


def copy_shipped(name: str, path: Path, *, overwrite: bool = False) -> Listed:
    """Copy a shipped model to a folder, which appears whole or not at all; it is private."""
    require_shipped(name)
    if path.exists():  # what is no model is never removed
        if not overwrite:
            raise AlreadyExists(f"{path} exists", hint="choose another folder, or --force")
        if not (path / MANIFEST_FILE).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise AlreadyExists(
                f"{path} has no {MANIFEST_FILE}: it is no model, and is not replaced",
                hint=f"choose another folder, or a new one in it: --out {shlex.quote(str(path / 'model'))}",
            )
    with appearing(path) as staging:
        copy_folder(shipped_folder() / name, staging)
        with (staging / WEIGHTS_FILE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != (read_json(staging / MANIFEST_FILE) or {}).get("weights_sha256"):
            problem = f"{name}: {WEIGHTS_FILE} was changed after it was written"
            raise BundleInvalid(problem, hint="install the package again")
        checked = look(staging, name)
    model_folder(path)
    return checked


def _learned(steps: Mapping[str, Any]) -> tuple[int, ...]:
    both = [
        {leg["evaluations"] for leg in steps.get("legs", ()) if leg["stage"] == stage}
        for stage in ("encode", "decode")
    ]
    return tuple(sorted(both[0] & both[1]))

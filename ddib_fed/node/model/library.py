"""The models that a node has installed beside its configured one, and which of them it serves.

    state/models/DIGEST/     an installed bundle, verified
    state/model.json         which digest is active, and which was before; none: the bundle that node.toml names

The choice counts for the configured bundle that was there when it was made: who puts another model at `[model] bundle`
later has chosen that one. One file says all, so a kill leaves the model of before or the new one.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import BundleInvalid, ConfigError, ModelNotFound, StateConflict
from ddib_fed.files import (
    copy_folder,
    move_into_place,
    private_folder,
    read_json,
    read_small,
    write_file,
)
from ddib_fed.models.bundle import load_bundle
from ddib_fed.node.config import NodeConfig
from ddib_fed.trust.certificates import parse_certificates
from ddib_fed.trust.signed_bundles import Statement, verify_bundle

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
_Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class Choice(BaseModel):
    """`state/model.json`.

    Attributes:
        format_version: Of the file.
        active: Digest of the model that is served.
        previous: Of the one before, to which a rollback goes.
        configured: Of the bundle that node.toml named when the choice was made; empty if there was none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    active: _Digest
    previous: _Digest
    configured: _Digest


def configured_digest(config: NodeConfig) -> str:
    """Digest in the manifest of the bundle that node.toml names; empty if there is none."""
    return str((read_json(config.paths.bundle / MANIFEST) or {}).get("digest", ""))


def choice(config: NodeConfig) -> Choice | None:
    """The operator's choice, if it counts; None for the configured bundle.

    Raises:
        ConfigError: The file cannot be read.
    """
    found = recorded_choice(config)
    return found if found is not None and found.configured == configured_digest(config) else None


def recorded_choice(config: NodeConfig) -> Choice | None:
    """The choice on the disk, also where the configured bundle of then is no longer there; None if none was made.

    Raises:
        ConfigError: The file cannot be read.
    """
    path = config.paths.model_choice
    if not path.exists():
        return None
    try:
        found = Choice.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read, which says what model is served",
            hint=f"ddib model activate DIGEST, or remove it: then {config.paths.bundle} is served",
        ) from error
    if found.format_version > FORMAT_VERSION:
        raise ConfigError(f"{path} is of a newer release", hint="upgrade ddib-fed")
    return found


def active_digest(config: NodeConfig) -> str:
    """Digest of the model to be served now; empty if there is none.

    Raises:
        ConfigError: The choice cannot be read.
    """
    chosen = choice(config)
    return configured_digest(config) if chosen is None else chosen.active


def place_of(config: NodeConfig, digest: str) -> Path:
    """The folder of a model that this node has, by its digest or the first characters of it.

    Raises:
        ModelNotFound: It has none, or several that begin so.
    """
    if digest and configured_digest(config).startswith(digest):
        return config.paths.bundle
    library = config.paths.models
    found = [entry for entry in installed(config) if digest and entry.startswith(digest)]
    if len(found) != 1:
        problem = "several models begin" if found else "no model is installed that begins"
        raise ModelNotFound(
            f"{problem} with {digest[:64]!a} here",
            hint=f"one of {', '.join(found)}"
            if found
            else "ddib model install BUNDLE; ddib model list --config FILE",
        )
    return library / found[0]


def installed(config: NodeConfig) -> list[str]:
    """Digests of the installed models."""
    library = config.paths.models
    entries = library.iterdir() if library.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def active_place(config: NodeConfig) -> Path:
    """The folder of the model to be served now.

    Raises:
        ConfigError: The choice cannot be read.
        ModelNotFound: The chosen model is no longer installed.
    """
    chosen = choice(config)
    return config.paths.bundle if chosen is None else place_of(config, chosen.active)


def install(
    config: NodeConfig,
    bundle: Path,
    *,
    recorded: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> str:
    """Verify a bundle, and copy it to the node's library; what is verified is the copy.

    Files that change no digest (learned steps, the gate's bounds, reports, the signature) are part of it: where the
    library has the same model with other such files, these take their place.

    Args:
        config: Of the node.
        bundle: Its folder.
        recorded: Writes down the digest of a model that becomes available inside, or gets other such files; what it
            raises prevents that.

    Returns:
        Its digest.

    Raises:
        ModelNotFound, BundleInvalid: It is none, or was changed while it was copied; or it is not signed, and node.toml
            demands that.
        ConfigError: It is of another domain than the node serves.
    """
    digest = _check(config, bundle)  # errors name the folder that was given
    library = private_folder(config.paths.models)
    place, staging = library / digest, library / f".{digest}.new"
    shutil.rmtree(staging, ignore_errors=True)  # what an interrupted installation left
    try:
        copy_folder(bundle, staging)
        if _check(config, staging) != digest:
            raise BundleInvalid(f"{bundle} was changed while it was copied", hint="install it again")
        if not (place.exists() and _same_files(staging, place)):
            with recorded(digest):
                move_into_place(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return digest


def _check(config: NodeConfig, bundle: Path) -> str:
    """The digest of a bundle that this node may serve; errors as `install`."""
    found = load_bundle(bundle)
    expected = config.model.bundle_domain or config.model.domain
    if found.manifest.domain != expected:
        raise ConfigError(
            f"the bundle {bundle} is of the domain {found.manifest.domain!a}, this node serves {expected!a}",
            hint="[model] domain and bundle_domain in node.toml",
        )
    if config.model.signed:
        check_signed(config, bundle)
    return found.digest


def _same_files(one: Path, other: Path) -> bool:
    names, others = ({entry.name for entry in folder.iterdir()} for folder in (one, other))
    return names == others and filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


def check_signed(config: NodeConfig, bundle: Path) -> Statement:
    """The statement of a bundle that a root of the node's institution has signed.

    Raises:
        ModelNotFound, BundleInvalid: As `verify_bundle`.
        InputError: The own roots cannot be read.
    """
    roots = parse_certificates(read_small(config.paths.pki / "roots.pem"), "roots.pem")
    return verify_bundle(bundle, roots, config.node.institution)


def choose(config: NodeConfig, digest: str) -> Choice:
    """Let the node serve a model that it has; on the disk when this returns.

    Args:
        config: Of the node.
        digest: The whole digest.

    Raises:
        ConfigError: The choice of before cannot be read.
    """
    before = choice(config)
    configured = configured_digest(config)
    serving = configured if before is None else before.active
    made = Choice(
        active=digest,
        previous=serving if serving != digest else (before.previous if before else ""),
        configured=configured,
    )
    write_file(config.paths.model_choice, (made.model_dump_json() + "\n").encode(), private=True)
    return made


def previous(config: NodeConfig) -> str:
    """The digest to which a rollback goes.

    Raises:
        StateConflict: No other model was served before.
    """
    chosen = choice(config)
    if chosen is None or not chosen.previous:
        raise StateConflict("no other model was active before", hint="ddib model activate DIGEST")
    return chosen.previous

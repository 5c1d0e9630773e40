"""The models that ship with the package; opens a model by a shipped one's name or index, or by its folder."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ddib_fed.datasets.synthetic import domain_name
from ddib_fed.errors import DomainNotFound, ModelNotFound, UsageError
from ddib_fed.files import copy_folder
from ddib_fed.models.bundle import Bundle, load_bundle, read_bundle
from ddib_fed.models.bundle_files import MANIFEST_FILE

CALIBRATION_FILE = "calibration.json"
"""Of a shipped model that was trained with one."""


def pretrained_domains() -> tuple[str, ...]:
    """Names of the domains whose models ship with the package."""
    folder = _pretrained_folder()
    return tuple(sorted(e.name for e in folder.iterdir() if e.is_dir())) if folder.is_dir() else ()


def pretrained(domain: str) -> Bundle:
    """The shipped model of `domain`.

    Raises:
        ModelNotFound: There is no shipped model of this domain.
        BundleInvalid: The installation is damaged.
    """
    shipped = pretrained_domains()
    if domain not in shipped:
        raise ModelNotFound(
            f"no model of {domain!r} ships with the package",
            hint=f"there are: {', '.join(shipped) or 'none'}",
        )
    return read_bundle(_pretrained_folder() / domain, f"pretrained {domain}")


def shipped_calibration(name: str) -> bytes | None:
    """JSON of the calibration that a shipped model was trained with; None where there is no such model, or none."""
    file = _pretrained_folder() / name / CALIBRATION_FILE
    return file.read_bytes() if name in pretrained_domains() and file.is_file() else None


def copy_pretrained(domain: str, path: Path) -> None:
    """Copy the shipped model of `domain` into a new private folder.

    Raises:
        FileExistsError: There is something at `path`.
    """
    with resources.as_file(_pretrained_folder() / domain) as folder:
        copy_folder(folder, path)


def open_bundle(which: str) -> Bundle:
    """The shipped model of a domain given by name or index, else the bundle in a folder.

    Raises:
        ModelNotFound: There is neither.
        BundleInvalid: The bundle fails its checks.
        UsageError: There are both.
    """
    domain = shipped_name(which)
    return load_bundle(Path(which)) if domain is None else pretrained(domain)


def shipped_name(which: str) -> str | None:
    """The domain of the shipped model that `which` names; None when it is to be a folder.

    Raises:
        UsageError: A bundle lies in a folder of that name.
    """
    try:
        domain = domain_name(which)
    except DomainNotFound:
        domain = which
    if domain not in pretrained_domains():
        return None
    if (Path(which) / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{which} is a model that ships, and a bundle in a folder here",
            hint=f"./{which} is the folder; to have the one that ships, call the folder otherwise",
        )
    return domain


def _pretrained_folder() -> Traversable:
    return resources.files("ddib_fed.models") / "pretrained"

"""The models that ship with the package; opens a model by a shipped one's name or index, or by its folder."""

from __future__ import annotations

from pathlib import Path

from ddib_fed.datasets.synthetic import domain_name
from ddib_fed.errors import DomainNotFound, ModelNotFound, UsageError
from ddib_fed.models.bundle import Bundle, load_bundle, read_bundle
from ddib_fed.models.catalogue import MANIFEST_FILE, require_shipped, shipped_folder, shipped_names
from ddib_fed.names import nearest

CALIBRATION_FILE = "calibration.json"
"""Of a shipped model that was trained with one."""


def pretrained(domain: str) -> Bundle:
    require_shipped(domain)
    return read_bundle(shipped_folder() / domain, f"pretrained {domain}")


def shipped_calibration(name: str) -> bytes | None:
    file = shipped_folder() / name / CALIBRATION_FILE
    return file.read_bytes() if name in shipped_names() and file.is_file() else None


def open_bundle(which: str) -> Bundle:
    """The shipped model of a domain given by name or index, else the bundle in a folder."""
    domain = shipped_name(which)
    if domain is not None:
        return pretrained(domain)
    close = nearest(which, shipped_names())
    if close and not Path(which).exists():
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
    if _holds_a_bundle(Path(which)):
        raise UsageError(
            f"{which} is a model that ships, and a bundle in a folder here",
            hint=f"./{which} is the folder; to have the one that ships, call the folder otherwise",
        )
    return domain


def _holds_a_bundle(folder: Path) -> bool:
    try:
        return (folder / MANIFEST_FILE).is_file()
    except PermissionError:
        return False

"""Packages of the optional extras: an error for a missing one, with a command that installs it."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ddib_fed.errors import ExtraMissing


@contextmanager
def extra(name: str, package: str, what: str, *, otherwise: str = "") -> Iterator[None]:
    """Guard imports of a package of an extra.

    Args:
        name: Of the extra in pyproject.toml.
        package: As pip installs it; several are separated by spaces.
        what: The sentence of the error.
        otherwise: What can be done instead of installing it.

    Raises:
        ExtraMissing: An import inside fails.
    """
    try:
        yield
    except ImportError as error:
        raise missing(name, package, what, otherwise=otherwise) from error


def missing(name: str, package: str, what: str, *, otherwise: str = "") -> ExtraMissing:
    """The error for a package of an extra that is not installed; arguments as of `extra`."""
    hint = install_command(name, package) + (f", or {otherwise}" if otherwise else "")
    return ExtraMissing(what, hint=hint, facts={"extra": name, "package": package})


def install_command(name: str, package: str) -> str:
    """A line for a shell that installs what is missing of an extra into the Python that runs.

    It names packages, not `ddib-fed[EXTRA]`: no index has ddib-fed, and a checkout may have been moved since.
    """
    lacking = [each for each in _requirements(name) if not _is_installed(each)]
    return shlex.join([sys.executable, "-m", "pip", "install", *(lacking or package.split())])


def _requirements(name: str) -> list[str]:
    """Of an extra, with their versions, as this installation declares them."""
    try:
        declared = importlib.metadata.requires("ddib-fed") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    parts = (each.partition(";") for each in declared)
    return [
        package.strip() for package, _, marker in parts if re.search(rf"extra == ['\"]{name}['\"]", marker)
    ]


def _is_installed(requirement: str) -> bool:
    try:
        importlib.metadata.version(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

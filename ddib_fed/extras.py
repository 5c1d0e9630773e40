"""Packages of the optional extras: an error for a missing one, with a command that installs it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ddib_fed.errors import ExtraMissing


@contextmanager
def extra(name: str, package: str, what: str, *, otherwise: str = "") -> Iterator[None]:
    """Guard imports of a package of an extra."""
    try:
        yield
    except ImportError as error:
        raise missing(name, package, what, otherwise=otherwise) from error


def missing(name: str, package: str, what: str, *, otherwise: str = "") -> ExtraMissing:
    hint = install_command(name, package) + (f", or {otherwise}" if otherwise else "")
    return ExtraMissing(what, hint=hint, facts={"extra": name, "package": package})


def install_command(name: str, package: str) -> str:
    """A line for a shell that installs what is missing of an extra into the Python that runs; arguments as of
    `extra`.
    """
    from importlib import metadata  # which only an error needs

    try:
        declared = metadata.requires("ddib-fed") or []
    except metadata.PackageNotFoundError:
        declared = []
    lacking = []
    for requirement, _, marker in (each.partition(";") for each in declared):
        if re.search(rf"extra == ['\"]{name}['\"]", marker):
            try:
                metadata.version(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
            except metadata.PackageNotFoundError:
                lacking.append(requirement.strip())
    return shlex.join([sys.executable, "-m", "pip", "install", *(lacking or package.split())])

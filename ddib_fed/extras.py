"""Imports of optional packages, with an error that names the extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ddib_fed.errors import ExtraMissing


@contextmanager
def extra(name: str, package: str, what: str, *, otherwise: str = "") -> Iterator[None]:
    """Guard imports of a package of an extra.

    Args:
        name: Of the extra in pyproject.toml.
        package: As pip installs it.
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
    hint = f"pip install 'ddib-fed[{name}]'" + (f", or {otherwise}" if otherwise else "")
    return ExtraMissing(what, hint=hint, facts={"extra": name, "package": package})

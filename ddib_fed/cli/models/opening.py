"""Opens the model that an argument names, and refuses to overwrite results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.errors import AlreadyExists, UsageError

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle


def open_model(which: str) -> Bundle:
    """The shipped model of a domain given by name or index, else the bundle in a folder.

    Raises:
        ModelNotFound: There is neither.
        BundleInvalid: The bundle fails its checks.
        UsageError: There are both.
    """
    from ddib_fed.models.bundle import load_bundle, pretrained

    domain = shipped_name(which)
    return load_bundle(Path(which)) if domain is None else pretrained(domain)


def shipped_name(which: str) -> str | None:
    """The domain of the shipped model that `which` names; None when it is to be a folder.

    Raises:
        UsageError: A bundle lies in a folder of that name.
    """
    from ddib_fed.datasets.synthetic import domain_name
    from ddib_fed.errors import DomainNotFound
    from ddib_fed.models.bundle import MANIFEST_FILE, pretrained_domains

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


def refuse_overwriting(out: Path, *, force: bool) -> None:
    """Stop before computing when results are there already.

    Raises:
        AlreadyExists: `out` holds a report and `force` is not given.
    """
    if (out / "report.json").exists() and not force:
        raise AlreadyExists(f"{out} holds results already", hint="choose another folder, or --force")

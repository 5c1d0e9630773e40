"""Opens a model by what a user calls it: the name or index of a shipped model, or the folder of a bundle."""

from __future__ import annotations

from pathlib import Path

from ddib_fed.datasets.synthetic import domain_name
from ddib_fed.errors import DomainNotFound, UsageError
from ddib_fed.models.bundle import MANIFEST_FILE, Bundle, load_bundle, pretrained, pretrained_domains


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

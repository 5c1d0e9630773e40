"""Opens the model that an argument names, and refuses to overwrite results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.errors import AlreadyExists

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle


def open_model(which: str) -> Bundle:
    """See `models.shipped.open_bundle`, which imports torch."""
    from ddib_fed.models.shipped import open_bundle

    return open_bundle(which)


def refuse_overwriting(out: Path, *, force: bool) -> None:
    """Stop before computing if there are results already.

    Raises:
        AlreadyExists: `out` has a report and `force` is not given.
    """
    if (out / "report.json").exists() and not force:
        raise AlreadyExists(f"{out} holds results already", hint="choose another folder, or --force")

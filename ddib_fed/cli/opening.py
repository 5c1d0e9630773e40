"""Opens the model that an argument names, and refuses to overwrite results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.errors import AlreadyExists

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle


def open_model(which: str) -> Bundle:
    from ddib_fed.models.bundle import open_bundle

    return open_bundle(which)


def refuse_overwriting(out: Path, *, force: bool) -> None:
    if (out / "report.json").exists() and not force:
        raise AlreadyExists(f"{out} holds results already", hint="choose another folder, or --force")

"""What commands that run a model in this process share."""

from __future__ import annotations

import os
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


def torch_threads() -> int:
    """Those of OMP_NUM_THREADS, else one: more may be slower."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else 1

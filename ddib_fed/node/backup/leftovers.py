"""Names of what a backup or a restoration writes before it is whole; the next one removes what a kill left of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def unfinished(kind: str) -> str:
    """What names of this process begin with: hidden, with the number of the process."""
    return f".{kind}-{os.getpid()}-"


def remove_interrupted(folder: Path, kind: str) -> None:
    """Remove what processes that are gone left in a folder under `unfinished`; of others nothing."""
    start = f".{kind}-"
    for entry in folder.glob(f"{start}*"):
        process = entry.name.removeprefix(start).partition("-")[0]
        if not process.isdigit() or Path("/proc", process).exists():
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)

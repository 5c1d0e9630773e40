"""Another model than the one that a node was configured with."""

from __future__ import annotations

from pathlib import Path

from ddib_fed.models.bundle import save_bundle
from tests.node.tiny_nodes import manifest, state


def other_bundle(folder: Path, answer: float = 0.0, **changes) -> Path:
    """Of the tiny network, written to a folder."""
    save_bundle(folder, manifest("other", **changes), state(answer))
    return folder

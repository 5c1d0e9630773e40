"""What a configuration may say about workers; a module that loads nothing large."""

from __future__ import annotations

from typing import Final

MOST_WORKERS: Final = 256
LOCAL: Final = "local"
"""Instead of a cluster's address: one of this machine alone."""

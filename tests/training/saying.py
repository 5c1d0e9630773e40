"""What a training process that is made to be killed says of its steps."""

from __future__ import annotations

import sys
import threading

from ddib_fed.training.loop.trainer import Progress


def said(progress: Progress) -> None:
    """Print the step; at the one that the third argument names, wait to be killed."""
    print(progress.step, flush=True)
    if progress.step in map(int, sys.argv[3:]):
        threading.Event().wait()

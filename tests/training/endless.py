"""Trains the config given as JSON into the folder given and says each step; to be killed, or started by torchrun."""

import sys
import threading
from pathlib import Path

from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from tests.training.examples import spots_source


def said(progress):
    """At a step that is named in the arguments it waits for ever."""
    print(progress.step, flush=True)
    if progress.step in map(int, sys.argv[3:]):
        threading.Event().wait()


config = TrainConfig.model_validate_json(sys.argv[1])
train(
    config, Path(sys.argv[2]), said, source=spots_source() if config.kind == "pictures" else None, resume=True
)
# A thread of a process group that still runs when the process exits may abort it.
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
if left := [name for name in names if "gloo" in name]:
    raise AssertionError(left)

"""Trains the config given as JSON into the folder given and says each step; to be killed, or started by torchrun."""

import sys
import threading
import time
from contextlib import suppress
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


def threads_of_gloo():
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it ended meanwhile
            if "gloo" in (name := path.read_text().strip()):
                yield name


# A thread of a process group that still runs when the process exits may abort it. One that was joined is listed until
# the kernel has removed it.
deadline = time.monotonic() + 60
while (left := list(threads_of_gloo())) and time.monotonic() < deadline:
    time.sleep(0.01)
if left:
    raise AssertionError(left)

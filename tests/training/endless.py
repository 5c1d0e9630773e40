"""Trains the config given as JSON into the folder given, and says each step; made to be killed."""

import sys
import threading
from pathlib import Path

from ddib_fed.training.loop.trainer import Progress
from ddib_fed.training.run import train
from ddib_fed.training.settings.config import PointTrainConfig

last = int(sys.argv[3]) if len(sys.argv) > 3 else 0
"""The step at which it waits to be killed; 0 for none."""


def said(progress: Progress) -> None:
    print(progress.step, flush=True)
    if progress.step == last:
        threading.Event().wait()


train(
    PointTrainConfig.model_validate_json(sys.argv[1]),
    Path(sys.argv[2]),
    said,
    resume=True,
)

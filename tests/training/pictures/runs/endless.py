"""Trains the config given as JSON into the folder given and says each step; to be killed, or started by torchrun."""

import sys
import threading
from pathlib import Path

from ddib_fed.training.loop.trainer import Progress
from ddib_fed.training.run import train
from ddib_fed.training.settings.config import PictureTrainConfig
from tests.training.pictures.examples import spots_source

last = int(sys.argv[3]) if len(sys.argv) > 3 else 0
"""The step at which it waits to be killed; 0 for none."""


def said(progress: Progress) -> None:
    print(progress.step, flush=True)
    if progress.step == last:
        threading.Event().wait()


train(
    PictureTrainConfig.model_validate_json(sys.argv[1]),
    Path(sys.argv[2]),
    said,
    source=spots_source(),
    resume=True,
)

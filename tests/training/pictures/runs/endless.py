"""Trains the config given as JSON into the folder given and says each step; to be killed, or started by torchrun."""

import sys
from pathlib import Path

from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from tests.training.pictures.examples import spots_source
from tests.training.saying import require_no_threads_of_a_group, said

train(
    TrainConfig.model_validate_json(sys.argv[1]),
    Path(sys.argv[2]),
    said,
    source=spots_source(),
    resume=True,
)
require_no_threads_of_a_group()

"""A step asks the device for no number, so that on a GPU the next one is queued while it runs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddib_fed.training.config import TrainConfig
from ddib_fed.training.distributed import World
from ddib_fed.training.pictures import PictureTask
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.sources import open_start
from ddib_fed.training.trainer import Losses, Trainer
from tests.training.pictures.examples import spots_source

ALONE = World(0, 1, torch.device("cpu"))
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
"""What torch calls to hand a number, or a shape that depends on numbers, to Python."""


class Reads(TorchDispatchMode):
    """Counts the calls that wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split(".")[0] in READS:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def picture_trainer(**change):
    network = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    config = TrainConfig(kind="pictures", network=network, batch=4, steps=5, **change).settled()
    source = spots_source()
    return Trainer(PictureTask(config, source, open_start(config, source)), ALONE, ahead=False)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"learn_sigma": True}, {"classes": "given", "label_dropout": 0.1}])
def test_a_step_on_pictures_reads_nothing_back(change):
    one = picture_trainer(**change)
    one.advance()
    with Reads() as reads:
        loss = one.advance()
    assert reads.found == []
    with reads:
        float(loss)
    assert reads.found


def test_a_step_on_points_reads_nothing_back(tiny):
    one = Trainer(PointTask(tiny, open_points(tiny)), ALONE, ahead=False)
    one.advance()
    with Reads() as reads:
        one.advance()
    assert reads.found == []


def test_losses_come_in_the_order_of_the_steps():
    losses = Losses()
    for step in range(1, 4):
        losses.add(step, torch.tensor(float(step)))
    assert losses.read(wait=False) == [1.0, 2.0, 3.0]
    assert losses.read() == []

"""Microbatches change nothing but rounding and halve when memory runs out; copies of training pictures are noticed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ddib_fed.data.folder import expand
from ddib_fed.networks.spectrum import cosines
from ddib_fed.training import pictures as sheet
from ddib_fed.training.distributed import World
from ddib_fed.training.pictures import PictureTask
from ddib_fed.training.sources import open_start
from ddib_fed.training.trainer import Trainer
from tests.training.stepping import losses_of

ALONE = World(0, 1, torch.device("cpu"))


def trainer(config, source):
    settled = config.settled()
    return Trainer(PictureTask(settled, source, open_start(settled, source)), ALONE)


@pytest.mark.slow
def test_microbatches_change_nothing_but_rounding(tiny, spots):
    found = []
    for microbatch in (8, 3):
        one = trainer(tiny.model_copy(update={"microbatch": microbatch}), spots)
        found.append((losses_of(one, 4), torch.cat([p.detach().flatten() for p in one.network.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) < 1e-5


@pytest.mark.parametrize("colours", ["rgb", "opponent"])
def test_the_spectrum_is_that_of_the_pictures_as_the_network_gets_them(tiny, spots, colours):
    """Measured before the first step, of normalised pictures; the averages, and so the bundle, have it too."""
    one = trainer(tiny.model_copy(update={"colours": colours, "flip": False, "dequantise": False}), spots)
    x = one.task.normal.apply(expand(spots.train).astype(np.float64))
    found = cosines(torch.from_numpy(x).double())
    spectrum = one.network.spectrum
    assert torch.allclose(spectrum.mean.double(), torch.from_numpy(x).double().mean(0), atol=2e-3)
    assert torch.allclose(
        spectrum.log_variance.double().exp(), found.var(0, correction=0), rtol=1e-2, atol=1e-4
    )
    one.advance()
    assert torch.equal(one.averaged().spectrum.log_variance, spectrum.log_variance)


SHORT_OF_MEMORY = """
import resource
import torch
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.trainer import Trainer
from ddib_fed.training.sources import open_start
from ddib_fed.training.pictures import PictureTask
from ddib_fed.training.distributed import World
from tests.training.pictures.examples import spots_source
torch.set_num_threads(1)
network = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "spectral": False}
config = TrainConfig(kind="pictures", network=network, batch=1024, microbatch=1024, steps=5).settled()
source = spots_source()
one = Trainer(PictureTask(config, source, open_start(config, source)), World(0, 1, torch.device("cpu")))
one.microbatch = 64
one.advance()
one.microbatch = 1024
for line in open("/proc/self/status"):
    if line.startswith("VmSize"):
        used = int(line.split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)
loss = one.advance()
print(one.microbatch, one.step, round(float(loss), 2), one.notes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits memory as Linux does")
@pytest.mark.timeout(600)
def test_when_memory_runs_out_the_microbatch_is_halved_and_the_step_still_taken():
    """In a process that may have 60 MiB more than it has."""
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[4], check=True)
    microbatch, step, loss, *notes = done.stdout.split()
    assert 1 <= int(microbatch) < 1024
    assert (step, float(loss)) == ("2", pytest.approx(1.0, abs=0.1))
    assert "out of memory with 1024 pictures at once: continuing with 512" in " ".join(notes)


def test_copies_of_training_pictures_are_noticed_and_new_pictures_are_not(spots):
    copies = spots.train[:8].astype(np.float32) / 127.5 - 1
    fresh = spots.held_out.astype(np.float32) / 127.5 - 1
    assert "overfitting" in sheet.nearness(spots, copies, flip=True).warning
    assert "overfitting" in sheet.nearness(spots, np.ascontiguousarray(copies[..., ::-1]), flip=True).warning
    assert not sheet.nearness(spots, fresh, flip=True).warning

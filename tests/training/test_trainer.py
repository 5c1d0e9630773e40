"""Microbatches change nothing but rounding and halve when memory runs out; pieces made ahead are the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddib_fed.training.pictures import PictureTask, open_start
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.trainer import Piece, Trainer, World
from tests.training.examples import tiny_pictures

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
FIRST, SECOND = Piece(0, 0, 4), Piece(0, 4, 8)


def weights_of(one):
    return torch.cat([p.detach().flatten() for p in one.network.parameters()])


@pytest.mark.slow
def test_microbatches_change_nothing_but_rounding(spots):
    found = []
    for microbatch in (8, 3):
        config = tiny_pictures(microbatch=microbatch)
        one = Trainer(PictureTask(config, spots, open_start(config, spots)), ALONE)
        found.append(([float(one.advance()) for _ in range(4)], weights_of(one)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) < 1e-5


SHORT_OF_MEMORY = """
import resource
import torch
from ddib_fed.training.pictures import PictureTask, open_start
from ddib_fed.training.trainer import Trainer, World
from tests.training.examples import TINY_NETWORK, spots_source, tiny_pictures
torch.set_num_threads(1)
config = tiny_pictures(network={**TINY_NETWORK, "spectral": False}, batch=1024, microbatch=1024, steps=5)
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
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    microbatch, step, loss, *notes = done.stdout.split()
    assert 1 <= int(microbatch) < 1024
    assert (step, float(loss)) == ("2", pytest.approx(1.0, abs=0.1))
    assert "out of memory with 1024 samples at once: continuing with 512" in " ".join(notes)


def test_a_run_ahead_computes_what_a_run_without_it_computes(tiny):
    """Bit for bit."""
    weights = []
    for ahead in (True, False):
        one = Trainer(PointTask(tiny, open_points(tiny)), ALONE, ahead=ahead)
        for _ in range(3):
            one.advance()
        one.close()
        weights.append(weights_of(one))
    assert torch.equal(*weights)

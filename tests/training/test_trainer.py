"""Microbatches change nothing but rounding and halve when memory runs out; pieces made ahead are the same."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ddib_fed import datasets
from ddib_fed.diffusion.denoiser import LAMBDA_SCALE
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.training.objective import ask, make_batch, posterior_mean
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
@pytest.mark.timeout(1_800)
def test_when_memory_runs_out_the_microbatch_is_halved_and_the_step_still_taken():
    """In a process that may have 60 MiB more than it has."""
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    microbatch, step, loss, *notes = done.stdout.split()
    assert 1 <= int(microbatch) < 1024
    assert (step, float(loss)) == ("2", pytest.approx(1.0, abs=0.1))
    assert "out of memory with 1024 samples at once: continuing with 512" in " ".join(notes)


def test_a_run_ahead_computes_what_a_run_without_it_computes(tiny):
    weights = []
    for ahead in (True, False):
        one = Trainer(PointTask(tiny, open_points(tiny)), ALONE, ahead=ahead)
        for _ in range(3):
            one.advance()
        one.close()
        weights.append(weights_of(one))
    assert torch.equal(*weights)


# Targets are those of the formulas, whatever cut of a batch they are computed in


def draw(count, seed=0):
    u = datasets.uniforms(seed, 0, count, 6)
    x0 = torch.from_numpy(datasets.from_uniforms("checkerboards", u[:, :4]))
    return x0, torch.from_numpy(datasets.normals(u[:, 4:])).float()


def test_the_posterior_mean_is_the_weighted_mean_written_out():
    """Against the definition in float64, stretch by stretch."""
    x0, eps = draw(12)
    alpha, sigma = torch.full((12, 1), 0.8), torch.full((12, 1), 0.6)
    x = alpha * x0 + sigma * eps
    found = posterior_mean(x, alpha, sigma, x0, 6).double()
    for i in range(12):
        members = x0[i // 6 * 6 : i // 6 * 6 + 6].double()
        weights = torch.softmax(-((x[i].double() - 0.8 * members) ** 2).sum(1) / (2 * 0.36), 0)
        assert torch.allclose(found[i], weights @ members, atol=1e-5)


@pytest.mark.parametrize(("reference", "bounds"), [(6, (0, 5, 6, 13, 24)), (24, (0, 1, 24)), (0, (0, 7, 24))])
def test_rows_of_a_batch_are_asked_the_same_whatever_cut_they_come_in(reference, bounds):
    """Inside a stretch, across its ends, and over whole ones: levels and posterior are those of the whole batch."""
    x0, eps = draw(24)
    lams = torch.tensor([1.0, 0.2, -1.0], dtype=torch.float64)
    whole = make_batch(x0, eps, lams, reference=reference)
    parts = [
        make_batch(x0, eps[first:stop], lams, reference=reference, first=first)
        for first, stop in pairwise(bounds)
    ]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.rows for part in parts]), whole.rows)
    assert torch.allclose(torch.cat([part.target for part in parts]), whole.target, atol=1e-6)


def test_the_target_is_v_or_eps_and_the_network_is_told_the_level():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 4, 4, generator=generator) * 2 - 1
    eps = torch.randn(4, 3, 4, 4, generator=generator)
    cosine, linear = (schedule_from_config(ScheduleConfig(*each)) for each in (("cosine",), ("linear", 1000)))
    lams = torch.tensor([2.0, 0.5, -0.5, -3.0], dtype=torch.float64)
    alpha = torch.sigmoid(2 * lams).sqrt().float()[:, None, None, None]
    sigma = torch.sigmoid(-2 * lams).sqrt().float()[:, None, None, None]
    for parameterisation, target in (("v", alpha * eps - sigma * x0), ("eps", eps)):
        question = ask(cosine, parameterisation, "scaled-lambda", x0, eps, lams)
        assert torch.allclose(question.x, alpha * x0 + sigma * eps)
        assert torch.allclose(question.target, target)
        assert torch.allclose(question.times, (LAMBDA_SCALE * lams).float())
    times = ask(linear, "eps", "timestep", x0, eps, lams).times
    assert torch.allclose(times.double(), linear.t_of_lam(lams), atol=1e-3)

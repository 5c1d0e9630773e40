"""Two processes of torchrun train on points what one process trains with twice the batch of each."""

import csv
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ddib_fed.models.bundle import load_bundle
from ddib_fed.training.checkpoint import latest_checkpoint
from ddib_fed.training.run import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]  # processes that start torch, on a machine that may be busy

ROOT = Path(__file__).parents[2]
SCRIPT = "tests.training.endless"
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def launch(config, out, processes=2):
    """Train under torchrun; what the processes said."""
    command = [*LAUNCHER, str(processes), "-m", SCRIPT, config.model_dump_json(), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(out, part):
    found = latest_checkpoint(out / "run").tensors
    return torch.cat([found[name].flatten().double() for name in sorted(found) if name.startswith(part)])


def losses(out):
    rows = csv.DictReader((out / "run" / "progress.csv").read_text().splitlines())
    return np.array([float(row["loss"]) for row in rows])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="even"),
        pytest.param({"batch": 75, "levels": 25, "reference": 25}, id="odd", marks=pytest.mark.long),
    ],
)
def test_two_processes_match_one_with_twice_the_batch(tiny, tmp_path, change):
    """Loss and weights to rounding, where the cut between the two falls between two posteriors and inside one; one of
    the two writes and speaks; from the checkpoint at step 35 the two go on to the last bit as if nothing had been.
    """
    config = tiny.model_copy(update=change)
    said = launch(config, tmp_path / "two")
    assert [int(line) for line in said.split()] == list(range(1, 41))
    train(config, tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for part in ("network", "ema"):
        one, two = (weights(tmp_path / name, part) for name in ("one", "two"))
        assert float((one - two).norm() / one.norm()) < 1e-4
    if not change:
        whole = (tmp_path / "two" / "model.safetensors").read_bytes()
        for path in (tmp_path / "two").glob("m*"):
            path.unlink()
        shutil.rmtree(tmp_path / "two" / "run" / "checkpoint-00000040")
        said = launch(config, tmp_path / "two")
        assert [int(line) for line in said.split()] == list(range(36, 41))
        assert (tmp_path / "two" / "model.safetensors").read_bytes() == whole


def test_two_processes_agree_on_the_end_of_a_run_that_fits_a_time(tiny, tmp_path):
    """The leader's clock decides, before steps at which both ask for it: neither waits for a step of the other."""
    said = launch(tiny.model_copy(update={"steps": None, "time_s": 2.0}), tmp_path)
    steps = [int(line) for line in said.split()]
    assert steps == list(range(1, load_bundle(tmp_path).manifest.training.steps + 1))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends them")
def test_processes_end_with_the_torchrun_that_was_killed(tiny, tmp_path):
    """Killed with -9 it can end nothing itself; before, its processes trained on and wrote into the folder."""
    endless = tiny.model_copy(update={"steps": 1_000_000})
    command = [*LAUNCHER, "2", "-m", SCRIPT, endless.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as launcher:
        assert launcher.stdout.readline() == b"1\n"
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        assert len(children) == 2
        launcher.kill()
        launcher.stdout.read()  # to the end, which comes when no process holds the pipe any more
    assert launcher.returncode == -signal.SIGKILL

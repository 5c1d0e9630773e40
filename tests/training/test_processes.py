"""Two processes of torchrun train on points what one process trains with twice the batch of each."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddib_fed.models.bundle import load_bundle

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

"""Killed with -9 a run loses nothing but steps; two processes of torchrun compute what one computes."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddib_fed.training.checkpoint import latest_checkpoint
from ddib_fed.training.run import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]  # processes that start torch, on a machine that may be busy

ROOT = Path(__file__).parents[4]
SCRIPT = "tests.training.pictures.runs.endless"


def run_until(config, out, step):
    """Train in a process of its own and kill it with -9 as soon as it says `step`."""
    command = [sys.executable, "-m", SCRIPT, config.model_dump_json(), str(out), str(step)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        said = next((line for line in process.stdout if int(line) >= step), None)
        process.send_signal(signal.SIGKILL)
    assert said is not None
    assert process.returncode == -signal.SIGKILL


def launch(config, out, processes=2):
    """Train under torchrun; its errors come out."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [*launcher, str(processes), "-m", SCRIPT, config.model_dump_json(), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_killed_and_gone_on_with_is_the_run_that_was_not_killed(tiny, spots, tmp_path):
    whole = train(tiny, tmp_path / "whole", source=spots)
    run_until(tiny, tmp_path / "killed", 7)
    assert latest_checkpoint(tmp_path / "killed" / "run").info.step >= 5
    assert not (tmp_path / "killed" / "manifest.json").exists()
    again = train(tiny, tmp_path / "killed", source=spots, resume=True)
    assert again.manifest.weights_sha256 == whole.manifest.weights_sha256


def test_two_processes_match_one_and_go_on_as_if_nothing_had_been(tiny, spots, tmp_path):
    """50 steps of an odd batch in float32: to 1e-4 relative as one process, in weights and averages, and to the last
    bit when the two go on from step 25; one of the two writes and speaks.
    """
    change = {
        "steps": 50,
        "batch": 7,
        "microbatch": 4,
        "checkpoint_every": 25,
    }
    config = tiny.model_copy(update=change)
    said = launch(config, tmp_path / "two")
    assert [int(line) for line in said.split()] == list(range(1, 51))
    train(config, tmp_path / "one", source=spots)
    one, two = (latest_checkpoint(tmp_path / name / "run").tensors for name in ("one", "two"))
    for part in ("network", "ema"):
        names = [name for name in one if name.startswith(part)]
        flat = [torch.cat([found[name].flatten().double() for name in names]) for found in (one, two)]
        assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < 1e-4
    whole = (tmp_path / "two" / "model.safetensors").read_bytes()
    for path in (tmp_path / "two").glob("m*"):
        path.unlink()
    shutil.rmtree(tmp_path / "two" / "run" / "checkpoint-00000050")
    said = launch(config, tmp_path / "two")
    assert [int(line) for line in said.split()] == list(range(26, 51))
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == whole

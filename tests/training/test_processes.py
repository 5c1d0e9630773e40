"""Killed with -9 a run loses nothing but steps; two processes compute what one computes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddib_fed.testing import free_port
from ddib_fed.training.run import latest_checkpoint, train
from tests.training.examples import tiny_pictures

# Processes that start torch, on a machine that may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

ROOT = Path(__file__).parents[2]
SCRIPT = "tests.training.endless"
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run_until(config, out, step):
    """Train in a process of its own and kill it with -9 as soon as it says `step`."""
    command = [sys.executable, "-m", SCRIPT, config.model_dump_json(), str(out), str(step)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        said = next((line for line in process.stdout if int(line) >= step), None)
        process.send_signal(signal.SIGKILL)
    assert said is not None
    assert process.returncode == -signal.SIGKILL


def launch(config, out):
    """Train in two processes, as torchrun starts them; the steps that they said."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", SCRIPT, config.model_dump_json(), str(out)], stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env=os.environ | place | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    said = [each.communicate(timeout=1_500)[0] for each in started]
    assert [each.returncode for each in started] == [0, 0]
    return [int(line) for line in "".join(said).split()]


def test_killed_and_resumed_is_the_run_that_was_not_killed(small, spots, tmp_path):
    """Between two checkpoints, in a process of its own."""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    train(small, whole, source=spots)
    run_until(small, out, 7)
    assert latest_checkpoint(out / "run")[0].step == 5
    assert not (out / "manifest.json").exists()
    train(small, out, source=spots, resume=True)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    last = [latest_checkpoint(folder / "run")[1] for folder in (out, whole)]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_two_processes_match_one_and_resume_as_if_nothing_had_been(spots, tmp_path):
    """Ten steps of an odd batch in float32: to 1e-4 relative as one process, in weights and averages, and to the last
    bit when the two resume from step 5; one of the two writes and speaks.
    """
    config = tiny_pictures(steps=10, batch=7, microbatch=4, checkpoint_every=5)
    assert launch(config, tmp_path / "two") == list(range(1, 11))
    train(config, tmp_path / "one", source=spots)
    one, two = (latest_checkpoint(tmp_path / name / "run")[1] for name in ("one", "two"))
    for part in ("network", "ema"):
        names = [name for name in one if name.startswith(part)]
        flat = [torch.cat([found[name].flatten().double() for name in names]) for found in (one, two)]
        assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < 1e-4
    whole = (tmp_path / "two" / "model.safetensors").read_bytes()
    for path in (*(tmp_path / "two").glob("m*"), *(tmp_path / "two" / "run").glob("checkpoint-00000010-*")):
        path.unlink()
    assert launch(config, tmp_path / "two") == list(range(6, 11))
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == whole


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends them")
def test_processes_end_with_the_torchrun_that_was_killed(tiny, tmp_path):
    """Killed with -9 it can end nothing itself; before, its processes trained on and wrote into the folder."""
    endless = tiny.model_copy(update={"steps": 1_000_000})
    command = [*LAUNCHER, "-m", SCRIPT, endless.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as launcher:
        assert launcher.stdout.readline() == b"1\n"
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        assert len(children) == 2
        launcher.kill()
        launcher.stdout.read()  # to the end, which comes when no process holds the pipe any more
    assert launcher.returncode == -signal.SIGKILL

"""What is not made for several processes refuses them before it writes anything; training is shared."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddib_fed.errors import UsageError
from ddib_fed.models.bundle import load_bundle
from ddib_fed.paper.colours import transfer
from ddib_fed.terminal import require_alone
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from tests.runs.picture_folders import blocks, write

# Processes that start torch, on a machine that may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

ROOT = Path(__file__).parents[2]
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SMALL = ("--size", "8", "--set", "model_channels=32", "--set", "channel_mult=1",
         "--set", "num_res_blocks=1", "--batch", "8", "--steps", "2")  # fmt: skip


def test_training_is_shared(tmp_path):
    """The documented way, `--no-python` and the command itself: one bundle, said once, and its user's alone."""
    write(tmp_path / "in", blocks(12))
    ddib, out = Path(sys.executable).with_name("ddib"), tmp_path / "m"
    words = (ddib, "model", "train", "--images", tmp_path / "in", *SMALL, "--out", out)
    line = [*LAUNCHER, "--no-python", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False, timeout=1_500, umask=0)
    assert done.returncode == 0, done.stderr
    assert load_bundle(out).manifest.training.figures["processes"] == 2
    assert done.stdout.count("parameters") == 1
    # Sheets and samples show what the training pictures look like.
    written = [out, *out.rglob("*")]
    assert {path.suffix for path in written} >= {".png", ".safetensors"}
    assert [path for path in written if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_functions_refuse_too_whoever_started_the_processes(tmp_path, monkeypatch, variable):
    """A script of one's own under torchrun, or `mpiexec -n 8` as the public code's README starts its training;
    `srun --ntasks 2` says it in a variable of its own."""
    monkeypatch.setenv(variable, "2")
    if variable != "WORLD_SIZE":
        with pytest.raises(UsageError, match="torchrun alone"):
            train(TrainConfig(kind="points", domain="moons", steps=1), tmp_path / "out")
    with pytest.raises(UsageError, match="one process"):
        transfer(None, None, tmp_path / "out", steps=1, evaluations=1)
    monkeypatch.setenv(variable, "1")
    require_alone("this")
    assert not (tmp_path / "out").exists()

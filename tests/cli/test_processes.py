"""What is not made for several processes refuses them before it writes anything; training is shared."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.cli.init import make_node
from ddib_fed.cli.main import run
from ddib_fed.errors import UsageError
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.paper.colours import transfer
from ddib_fed.terminal import require_alone
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from tests.runs.picture_folders import blocks, write
from tests.runs.tiny_models import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]  # processes that start torch, on a machine that may be busy

ROOT = Path(__file__).parents[2]
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SMALL = ("--size", "8", "--set", "model_channels=32", "--set", "channel_mult=1",
         "--set", "num_res_blocks=1", "--batch", "8", "--steps", "2")  # fmt: skip


def torchrun(*words):
    return subprocess.run(
        [*LAUNCHER, *words], capture_output=True, text=True, cwd=ROOT, check=False, timeout=500
    )


@pytest.fixture
def place(tmp_path):
    """Pictures, points, a model and a node."""
    write(tmp_path / "in", blocks(12))
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(300, 2)))
    made = tiny()
    save_bundle(tmp_path / "model", made.manifest, made.state)
    make_node(tmp_path / "north", institution="north.example", roles=("source",), domain="moons", name="node-1",
              listen="127.0.0.1:0", address="localhost:7441")  # fmt: skip
    return tmp_path


def test_what_is_not_shared_is_refused_under_torchrun_and_nothing_is_written(place):
    """Two real processes each try every kind of command; before, they raced, or each did everything."""
    out = ["--out", str(place / "out")]
    folder, model = str(place / "in"), str(place / "model")
    lines = [
        ["model", "sample", "moons", "--n", "5", *out],
        ["colours", f"{folder}/p00.png", f"{folder}/p01.png", "--steps", "2", *out],
        ["try", folder, folder, "--steps", "1", *out],
        ["translate", folder, "--source", model, "--target", model, "--evaluations", "3", *out],
        ["evaluate", folder, "--out", str(place / "out")],
    ]
    done = torchrun("-m", "tests.cli.torchrun_lines", json.dumps(lines))
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[2] * len(lines)] * 2, done.stderr
    assert not (place / "out").exists()
    assert done.stderr.count("torchrun started 2") == 2 * len(lines)


@pytest.mark.parametrize(
    "kind", ["pictures", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("points", "file"))]
)
def test_training_is_shared(place, kind):
    """The documented way, `--no-python` and the command itself: one bundle, said once."""
    data = {
        "pictures": ("--images", place / "in", *SMALL),
        "points": ("--domain", "moons", "--steps", "3", "--batch", "64", "--set", "width=16"),
        "file": ("--data", place / "points.npy", "--steps", "3", "--batch", "64", "--set", "width=16"),
    }
    script = Path(sys.executable).with_name("ddib")
    words = ("model", "train", *data[kind], "--out", place / "m")
    done = torchrun("--no-python", *map(str, (script, *words)))
    assert done.returncode == 0, done.stderr
    assert load_bundle(place / "m").manifest.training.figures["processes"] == 2
    assert done.stdout.count("parameters") == 1


@pytest.mark.long
def test_a_nodes_training_on_pictures_is_shared(place):
    """`torchrun -m source_node train`: one bundle under the domain of node.toml, said once."""
    config = place / "north" / "node.toml"
    table = """images = "../in"
size = 8
batch = 8
steps = 2
network = {model_channels = 32, channel_mult = [1], num_res_blocks = 1}
"""
    text = config.read_text().replace('\ndomain = "moons"             # a built-in', "\n#", 1)
    config.write_text(text.replace("seed = 0", f"{table}seed = 0", 1))
    done = torchrun("-m", "source_node", "train", "--config", str(config))
    assert done.returncode == 0, done.stderr
    made = load_bundle(place / "north" / "model").manifest
    assert (made.domain, made.training.figures["processes"]) == ("moons", 2)
    assert done.stderr.count("parameters, digest") == 1


@pytest.mark.parametrize(
    "variable",
    ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"],
)
def test_functions_refuse_too_whoever_started_the_processes(tmp_path, monkeypatch, variable):
    """A script of one's own under torchrun, or `mpiexec -n 8` as the public code's README starts its training;
    `srun --ntasks 2` says it in a variable of its own."""
    monkeypatch.setenv(variable, "2")
    if variable != "WORLD_SIZE":
        with pytest.raises(UsageError, match="torchrun alone"):
            train(TrainConfig(kind="points", domain="moons", steps=1), tmp_path / "out")
    with pytest.raises(UsageError, match="one process"):
        transfer(None, None, tmp_path / "out")
    monkeypatch.setenv(variable, "1")
    require_alone("this")
    assert not (tmp_path / "out").exists()


def test_mpi_does_not_train_the_same_pictures_twice(place, monkeypatch, capsys):
    """Only torchrun tells processes of each other; a process of MPI would take itself for alone."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert run(["model", "train", "--images", str(place / "in"), "--out", str(place / "out"), *SMALL]) == 2
    assert "torchrun" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_a_trained_model_its_sheets_and_its_samples_are_their_users_alone(place):
    """Sheets and samples show what the training pictures look like."""
    lines = [
        ["model", "train", "--images", place / "in", "--out", place / "made" / "model", *SMALL],
        ["model", "sample", place / "made" / "model", "--n", "2", "--out", place / "made" / "samples"],
    ]
    for line in lines:
        script = [sys.executable, "-c", "from ddib_fed.cli.main import main; main()", *map(str, line)]
        done = subprocess.run(script, check=False, umask=0, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    written = [place / "made", *(place / "made").rglob("*")]
    assert {path.suffix for path in written} >= {".png", ".safetensors"}
    assert [path for path in written if path.stat().st_mode & 0o077] == []

"""A run killed with -9 and resumed ends bit for bit as the run that was not killed."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddib_fed.errors import BundleInvalid, StateConflict
from ddib_fed.training.checkpoint import latest_checkpoint
from ddib_fed.training.run import train

SCRIPT = "tests.training.endless"
ROOT = Path(__file__).parents[2]


def run_until(config, out, step):
    """Train in a process of its own and kill it with -9 as soon as it says `step`."""
    with subprocess.Popen(
        [sys.executable, "-m", SCRIPT, config.model_dump_json(), str(out), str(step)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        said = next((line for line in process.stdout if int(line) >= step), None)
        process.send_signal(signal.SIGKILL)
    assert said is not None
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def through(tiny, tmp_path):
    train(tiny, tmp_path / "through")
    return tmp_path / "through"


@pytest.mark.slow
def test_killed_twice_and_resumed_is_the_run_that_was_not_killed(tiny, through, tmp_path):
    """Killed before the first checkpoint and again in the middle, each time in a process of its own."""
    out = tmp_path / "killed"
    run_until(tiny, out, 3)
    assert latest_checkpoint(out / "run") is None
    run_until(tiny, out, 24)
    assert latest_checkpoint(out / "run").info.step >= 21
    train(tiny, out, resume=True)
    assert (out / "model.safetensors").read_bytes() == (through / "model.safetensors").read_bytes()
    last = [latest_checkpoint(folder / "run").tensors for folder in (out, through)]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


@pytest.mark.slow
def test_the_folders_of_a_run_are_their_owners_alone(tiny, tmp_path):
    """At every moment, also of a run that an older release began: folders 0700; weights, settings and figures 0600."""
    out, seen = tmp_path / "model", []
    (out / "run").mkdir(mode=0o755, parents=True)
    before = os.umask(0o022)
    try:
        train(
            tiny,
            out,
            lambda progress: seen.append({p: p.stat().st_mode & 0o777 for p in [out, *out.rglob("*")]}),
        )
    finally:
        os.umask(before)
    seen.append({p: p.stat().st_mode & 0o777 for p in [out, *out.rglob("*")]})
    kept = {path: mode for modes in seen for path, mode in modes.items()}
    assert {mode for path, mode in kept.items() if path.suffix == ""} == {0o700}
    assert {mode for path, mode in kept.items() if path.suffix in {".safetensors", ".json", ".csv"}} == {
        0o600
    }
    assert len([path for path in kept if path.name == "state.safetensors"]) >= 2


@pytest.mark.slow
def test_where_a_run_was_interrupted_does_not_show_in_its_progress_file(tiny, through, tmp_path):
    """The lines are those of one run: no step twice, none missing."""
    out = tmp_path / "stopped"

    def stop(progress):
        if progress.step == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny, out, stop)
    train(tiny, out, resume=True)
    texts = [(folder / "run" / "progress.csv").read_text() for folder in (out, through)]
    steps = [[line.split(",")[0] for line in text.splitlines()] for text in texts]
    assert steps[0] == steps[1] == ["step", "10", "20", "30", "40"]


def busy(factor, after):
    """A neighbour that makes every step take `factor` times as long once `after` steps are done."""
    seen = []

    def spin(progress):
        seen.append((time.monotonic(), progress.steps))
        if progress.step > after:
            until = time.monotonic() + factor * (seen[after - 1][0] - seen[0][0]) / (after - 1)
            while time.monotonic() < until:
                pass

    return spin, seen


@pytest.fixture
def timed(tiny):
    return tiny.model_copy(update={"steps": None, "time_s": 4.0, "batch": 512, "checkpoint_every": 1_000_000})


@pytest.mark.slow
def test_a_time_holds_on_a_machine_that_becomes_slower(timed, tmp_path):
    """Fewer steps than were planned at first, and the rate still falls to nothing without a jump."""
    spin, seen = busy(6, after=10)
    bundle = train(timed, tmp_path, spin)
    rows = list(csv.DictReader((tmp_path / "run" / "progress.csv").read_text().splitlines()))
    assert bundle.manifest.training.steps == len(seen) < seen[0][1]
    assert float(rows[-1]["seconds"]) < 2 * timed.time_s
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05 * timed.learning_rate


@pytest.mark.slow
def test_a_run_that_fits_a_time_resumes_with_the_steps_that_were_planned(timed, tmp_path):
    """Killed after its length was planned again, it repeats what was lost to the last bit, and ends by the clock."""
    spin, seen = busy(6, after=10)

    def stop(progress):
        spin(progress)
        if progress.steps != seen[0][1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(timed, tmp_path, stop)
    reached = latest_checkpoint(tmp_path / "run").info.step
    planned = json.loads((tmp_path / "run" / "run.json").read_text())["planned"]
    lines = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{reached:08d}")  # as a kill before it was written leaves it
    bundle = train(timed, tmp_path, resume=True)
    again = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in again[: len(lines)]] == [line.split(",")[:4] for line in lines]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["planned"][: len(planned)] == planned
    assert bundle.manifest.training.steps >= reached


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 41}, {"domain": "checkerboards"}, {"batch": 128}])
def test_a_run_with_other_settings_is_not_continued(tiny, through, change):
    (through / "manifest.json").unlink()
    with pytest.raises(StateConflict):
        train(tiny.model_copy(update=change), through, resume=True)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_serves(tiny, through, tmp_path):
    (through / "manifest.json").unlink()
    weights = (through / "model.safetensors").read_bytes()
    newest = max((through / "run").glob("checkpoint-*"))
    state = newest / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(bytes(content))
    with pytest.raises(BundleInvalid) as caught:
        train(tiny, through, resume=True)
    assert str(newest) in caught.value.hint
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    train(tiny, through, resume=True)
    assert (through / "model.safetensors").read_bytes() == weights

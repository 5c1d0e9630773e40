"""A run leaves a bundle and its records, and overwrites nothing that it was not told to."""

import csv
import json

import numpy as np
import pytest
import torch

from ddib_fed.errors import AlreadyExists, SettingsInvalid, StateConflict
from ddib_fed.evaluation import metrics
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training import report
from ddib_fed.training.config import TrainConfig, learning_rate
from ddib_fed.training.distributed import World
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.run import train
from ddib_fed.training.trainer import Trainer
from tests.training.stepping import losses_of


def trainer(config):
    return Trainer(PointTask(config, open_points(config)), World(0, 1, torch.device("cpu")))


@pytest.mark.slow
def test_a_run_ends_with_a_bundle_and_its_records(tiny, tmp_path):
    seen = []
    bundle = train(tiny, tmp_path / "out", lambda progress: seen.append((progress.step, progress.steps)))
    assert seen == [(step, 40) for step in range(1, 41)]
    assert load_bundle(tmp_path / "out").digest == bundle.digest
    records = {path.name for path in (tmp_path / "out" / "run").iterdir()}
    kept = {"checkpoint-00000035", "checkpoint-00000040"}
    assert records == {"run.json", "progress.csv", "loss.png", "samples.png"} | kept
    rows = list(csv.DictReader((tmp_path / "out" / "run" / "progress.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40]
    assert float(rows[-1]["held_out"]) > 0


@pytest.mark.slow
def test_a_finished_model_is_kept_unless_told_otherwise(tiny, tmp_path):
    first = train(tiny, tmp_path)
    with pytest.raises(AlreadyExists, match="finished"):
        train(tiny, tmp_path)
    assert train(tiny, tmp_path, resume=True).digest == first.digest
    again = train(tiny.model_copy(update={"seed": 5}), tmp_path, force=True)
    assert again.manifest.weights_sha256 != first.manifest.weights_sha256


@pytest.mark.slow
def test_a_finished_model_of_other_points_is_not_what_resuming_gives(tiny, tmp_path):
    """The settings are the same, the file at the path is not."""
    points = np.random.default_rng(1).normal(size=(500, 2)).astype(np.float32)
    np.save(tmp_path / "points.npy", points)
    config = tiny.model_copy(update={"domain": None, "data": tmp_path / "points.npy"})
    first = train(config, tmp_path / "out")
    np.save(tmp_path / "points.npy", points + points**3)
    with pytest.raises(StateConflict, match="other points"):
        train(config, tmp_path / "out", resume=True)
    np.save(tmp_path / "points.npy", points)
    assert train(config, tmp_path / "out", resume=True).digest == first.digest


def test_an_unfinished_run_is_kept_unless_told_otherwise(tiny, tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path, stop)
    with pytest.raises(AlreadyExists, match="unfinished"):
        train(tiny, tmp_path)


@pytest.mark.slow
def test_the_same_config_gives_the_same_weights_and_leaves_torchs_generator_alone(tiny, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = [train(tiny, tmp_path / name).manifest.weights_sha256 for name in ("a", "b")]
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_points_of_ones_own_give_a_bundle_with_their_scale(tiny, tmp_path):
    np.save(tmp_path / "cells.npy", np.random.default_rng(0).normal(5, 3, (400, 3)))
    config = tiny.model_copy(update={"domain": None, "data": tmp_path / "cells.npy"})
    made = train(config, tmp_path / "out").manifest
    assert made.domain == "cells"
    assert made.sample_shape == (3,)
    assert made.normalisation.mean == pytest.approx(5, abs=0.3)
    assert made.normalisation.std == pytest.approx(3, abs=0.3)


@pytest.mark.slow
def test_weights_can_be_stored_in_half_the_space(tiny, tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        train(tiny.model_copy(update={"dtype": dtype}), tmp_path / dtype)
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    assert sizes["float16"] < 0.65 * sizes["float32"]


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tiny):
    one = trainer(tiny.model_copy(update={"learning_rate": 1e30, "clip": 1e30}))
    with pytest.raises(SettingsInvalid, match="after"):
        losses_of(one, 40)


def test_the_rate_warms_up_and_falls_to_nothing(tiny):
    rates = [learning_rate(tiny.settled(1_000), step) for step in range(1_000)]
    assert rates[0] == pytest.approx(tiny.learning_rate / 5, rel=1e-3)
    assert max(rates) == pytest.approx(tiny.learning_rate, rel=0.01)
    assert rates[-1] < 1e-4 * tiny.learning_rate


def test_a_torn_line_of_progress_is_dropped(tmp_path):
    path = tmp_path / "progress.csv"
    names = "step,loss,held_out,learning_rate,seconds,cpu_seconds"
    path.write_text(f"{names}\n{report.Row(10, 0.5, None, 1e-3, 1.0, 1.0)}20,0.4")
    assert [row.step for row in report.read_progress(path)] == [10]


@pytest.mark.slow
def test_a_short_run_learns(tmp_path):
    """A few seconds of training bring the cloud from far away to within a few floors of the domain."""
    config = TrainConfig(
        kind="points",
        domain="moons",
        steps=250,
        batch=512,
        levels=64,
        reference=512,
        width=64,
        blocks=2,
        samples=2_000,
    )
    train(config, tmp_path)
    figures = json.loads((tmp_path / "manifest.json").read_text())["training"]["figures"]
    assert figures["sliced_w2"] < 0.2
    assert figures["sliced_w2"] > 0.2 * metrics.domain_sliced_w2_floor("moons", 2_000)

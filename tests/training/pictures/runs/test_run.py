"""A run ends with a bundle and its records, overwrites nothing, and can be stopped and gone on with."""

import csv
from dataclasses import replace

import pytest
import torch

from ddib_fed.errors import AlreadyExists, StateConflict
from ddib_fed.evaluation.sample_verdict import SampleVerdict
from ddib_fed.evaluation.structure import calibrate_by_chance
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training import report
from ddib_fed.training.checkpoint import latest_checkpoint
from ddib_fed.training.run import train
from ddib_fed.training.sources import array_source
from tests.training.pictures.examples import blobs


def stop_at(step):
    def on_progress(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.slow
def test_a_run_ends_with_a_bundle_and_its_records(tiny, spots, tmp_path):
    seen = []
    bundle = train(tiny, tmp_path, seen.append, source=spots)
    assert [progress.step for progress in seen] == list(range(1, 13))
    assert load_bundle(tmp_path).digest == bundle.digest
    records = {path.name for path in (tmp_path / "run").iterdir()}
    kept = {"checkpoint-00000010", "checkpoint-00000012"}
    assert records == {"run.json", "progress.csv", "loss.png", "samples.png", "held-out.png"} | kept
    rows = list(csv.DictReader((tmp_path / "run" / "progress.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [5, 10, 12]
    assert all(float(row["held_out"]) > 0 for row in rows)


@pytest.mark.slow
def test_the_manifest_says_how_the_model_was_made(tiny, spots, tmp_path):
    config = tiny.model_copy(update={"soften_sigma": 0.02, "command": "ddib model train ..."})
    made = train(config, tmp_path, source=spots).manifest
    assert (made.domain, made.sample_kind, made.sample_shape) == ("spots", "picture", (3, 8, 8))
    assert (made.soften_sigma, made.training.command, made.training.steps) == (0.02, config.command, 12)
    assert len(made.normalisation.mean) == len(made.normalisation.std) == 3
    assert (made.picture.low, made.picture.high, made.picture.bits) == (0, 255, 8)
    wanted = {"held_out_loss", "cpu_seconds", "nearest_training_picture", "nearest_training_picture_held_out"}
    assert made.training.figures.keys() >= wanted
    assert made.structure == calibrate_by_chance(spots.held_out, spots.train, units=made.normalisation)
    assert made.structure.basis == "chance"


@pytest.mark.slow
def test_stopped_between_checkpoints_and_gone_on_with_is_the_run_that_was_not(tiny, spots, tmp_path):
    """Stopped at step 7 of checkpoints every 5; to the last bit, in weights, averages, optimiser and lines."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(tiny, whole, source=spots)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, halves, stop_at(7), source=spots)
    assert latest_checkpoint(halves / "run").info.step == 7
    train(tiny, halves, source=spots, resume=True)
    assert (halves / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    last = [latest_checkpoint(folder / "run").tensors for folder in (whole, halves)]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    rows = [report.read_progress(folder / "run" / "progress.csv") for folder in (whole, halves)]
    assert [(row.step, row.held_out) for row in rows[0]] == [(row.step, row.held_out) for row in rows[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"classes": "given", "label_dropout": 0.3},
        {"network": {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "dropout": 0.2}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_random_comes_again_after_a_stop(tiny, spots, tmp_path, change):
    config = type(tiny)(**{**tiny.model_dump(), "steps": 6, **change})
    whole = train(config, tmp_path / "whole", source=spots)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "halves", stop_at(3), source=spots)
    halves = train(config, tmp_path / "halves", source=spots, resume=True)
    assert halves.manifest.weights_sha256 == whole.manifest.weights_sha256


@pytest.mark.slow
def test_what_is_there_is_kept_unless_told_otherwise(tiny, spots, tmp_path):
    config = tiny.model_copy(update={"steps": 2})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, stop_at(1), source=spots)
    with pytest.raises(AlreadyExists, match="unfinished"):
        train(config, tmp_path, source=spots)
    with pytest.raises(StateConflict):
        train(config.model_copy(update={"seed": 1}), tmp_path, source=spots, resume=True)
    first = train(config, tmp_path, source=spots, resume=True)
    with pytest.raises(AlreadyExists, match="finished"):
        train(config, tmp_path, source=spots)
    assert train(config, tmp_path, source=spots, resume=True).digest == first.digest
    with pytest.raises(StateConflict, match="other pictures"):
        train(config, tmp_path, source=replace(spots, digest="pictures:others"), resume=True)
    again = train(config.model_copy(update={"seed": 1}), tmp_path, source=spots, force=True)
    assert again.manifest.weights_sha256 != first.manifest.weights_sha256


@pytest.mark.slow
def test_a_short_run_learns(tiny, spots, tmp_path):
    """From knowing nothing; and from a Gaussian model of the pictures, which is ahead to begin with, from there."""
    config = tiny.model_copy(update={"steps": 120, "checkpoint_every": 60, "learning_rate": 3e-3, "ema": 0.9})
    found = {}
    for spectral in (False, True):
        network = {**config.network, "spectral": spectral}
        out = tmp_path / str(spectral)
        train(config.model_copy(update={"network": network}), out, source=spots)
        rows = list(csv.DictReader((out / "run" / "progress.csv").read_text().splitlines()))
        found[spectral] = float(rows[0]["loss"]), float(rows[-1]["held_out"])
    assert found[False][1] < 0.75 < found[False][0]
    assert found[True][1] < 0.95 * found[True][0] < found[False][0]


@pytest.mark.slow
def test_what_no_weight_depends_on_may_change_without_training(tiny, spots, tmp_path):
    """The name and the softening of a finished run, and of one that goes on."""
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path, stop_at(7), source=spots)
    softer = tiny.model_copy(update={"soften_sigma": 0.05})
    first = train(softer, tmp_path, source=spots, resume=True)
    assert first.manifest.soften_sigma == 0.05
    steps: list[int] = []
    named = softer.model_copy(update={"name": "dots", "soften_sigma": 0.0})
    again = train(named, tmp_path, steps.append, source=spots, resume=True, say=said.append)
    assert (again.manifest.name, again.manifest.soften_sigma) == ("dots", 0.0)
    assert again.manifest.weights_sha256 == first.manifest.weights_sha256
    assert steps == []
    assert any("written again" in text for text in said)
    assert train(named, tmp_path, source=spots, resume=True).digest == again.digest


@pytest.mark.slow
def test_a_run_says_whether_its_samples_are_of_the_domain(tiny, tmp_path):
    """A dozen steps are not enough; the figures are in the manifest, pictures to compare with beside the samples."""
    found = blobs(64)
    said = []
    made = train(tiny, tmp_path, source=array_source("spots", found[:48], found[48:]), say=said.append)
    verdict = SampleVerdict.of_figures(made.manifest.training.figures)
    assert verdict.level == "not yet"
    assert verdict.sentence(12) in said
    assert (tmp_path / "run" / "held-out.png").stat().st_size > 0

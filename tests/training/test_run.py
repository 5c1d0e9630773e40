"""A run ends with a bundle and its records, overwrites nothing that it was not told to, and resumes bit for bit."""

import csv
import os
from dataclasses import replace

import pytest
import torch

from ddib_fed.errors import AlreadyExists, BundleInvalid, SettingsInvalid, StateConflict
from ddib_fed.evaluation.features import SampleVerdict
from ddib_fed.metrics import calibrate_by_chance
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training.run import Row, latest_checkpoint, read_progress, train
from ddib_fed.training.sources import array_source
from tests.training.examples import TINY_NETWORK, blobs, stop_at, tiny_pictures, tiny_points


def rows_of(out):
    return list(csv.DictReader((out / "run" / "progress.csv").read_text().splitlines()))


@pytest.mark.slow
def test_a_run_on_pictures_ends_with_a_bundle_and_its_records(small, tmp_path):
    """And says whether its samples are of the domain, for which a dozen steps are not enough."""
    seen, said, found = [], [], blobs(64)
    spots = array_source("spots", found[:48], found[48:])
    config = small.model_copy(update={"soften_sigma": 0.02, "command": "ddib model train ..."})
    bundle = train(config, tmp_path, seen.append, source=spots, say=said.append)
    assert [(each.step, each.steps) for each in seen] == [(step, 12) for step in range(1, 13)]
    assert load_bundle(tmp_path).digest == bundle.digest
    records = {path.name.partition("-0")[0] for path in (tmp_path / "run").iterdir()}
    pictures = {"loss.png", "samples.png", "held-out.png"}
    assert records == {"run.json", "progress.csv", "checkpoint"} | pictures
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 2
    assert [int(row["step"]) for row in rows_of(tmp_path)] == [5, 10, 12]
    assert all(float(row["held_out"]) > 0 for row in rows_of(tmp_path))
    made = bundle.manifest
    assert (made.domain, made.sample_kind, made.sample_shape) == ("spots", "picture", (3, 8, 8))
    assert (made.soften_sigma, made.training.command, made.training.steps) == (0.02, config.command, 12)
    assert len(made.normalisation.mean) == len(made.normalisation.std) == 3
    assert made.training.figures.keys() >= {"held_out_loss", "cpu_seconds", "nearest_training_picture"}
    assert made.structure == calibrate_by_chance(spots.held_out, spots.train, units=made.normalisation)
    verdict = SampleVerdict.of_figures(made.training.figures)
    assert verdict.level == "not yet"
    assert verdict.sentence(12) in said


@pytest.mark.slow
def test_what_is_there_is_kept_unless_told_otherwise(small, spots, tmp_path):
    config = small.model_copy(update={"steps": 2})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, stop_at(1), source=spots)
    with pytest.raises(AlreadyExists, match="unfinished"):
        train(config, tmp_path, source=spots)
    for other in ({"seed": 1}, {"steps": 1}, {"batch": 4}):
        with pytest.raises(StateConflict):
            train(config.model_copy(update=other), tmp_path, source=spots, resume=True)
    first = train(config, tmp_path, source=spots, resume=True)
    with pytest.raises(AlreadyExists, match="finished"):
        train(config, tmp_path, source=spots)
    assert train(config, tmp_path, source=spots, resume=True).digest == first.digest
    with pytest.raises(StateConflict, match="other data"):
        train(config, tmp_path, source=replace(spots, digest="pictures:others"), resume=True)
    again = train(config.model_copy(update={"seed": 1}), tmp_path, source=spots, force=True)
    assert again.manifest.weights_sha256 != first.manifest.weights_sha256
    (tmp_path / "run" / "run.json").write_text('{"steps": "many"}')
    with pytest.raises(BundleInvalid, match="cannot be read") as caught:
        train(config, tmp_path, source=spots, resume=True)
    assert "--force" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"classes": "given", "label_dropout": 0.3, "network": {**TINY_NETWORK, "dropout": 0.2}},
        {"kind": "classifier", "classes": "given", "flip": False},
    ],
    ids=["generator", "classifier"],
)
def test_stopped_between_checkpoints_and_resumed_is_the_run_that_was_not(spots, tmp_path, change):
    """Stopped at step 7 of checkpoints every 5; to the last bit, in weights, averages, optimiser and lines."""
    config, whole, halves = tiny_pictures(**change), tmp_path / "whole", tmp_path / "halves"
    train(config, whole, source=spots)
    with pytest.raises(KeyboardInterrupt):
        train(config, halves, stop_at(7), source=spots)
    assert latest_checkpoint(halves / "run")[0].step == 7
    torch.manual_seed(99)
    train(config.model_copy(update={"steps": None}), halves, source=spots, resume=True)
    assert (halves / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    last = [latest_checkpoint(folder / "run")[1] for folder in (whole, halves)]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    rows = [[(row["step"], row["held_out"]) for row in rows_of(folder)] for folder in (whole, halves)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_the_folders_of_a_run_are_their_owners_alone(tiny, tmp_path):
    """At every moment: folders 0700; weights, settings and figures 0600."""
    out, seen = tmp_path / "model", []
    (out / "run").mkdir(mode=0o755, parents=True)
    before = os.umask(0o022)

    def look(progress=None):
        seen.append({path: path.stat().st_mode & 0o777 for path in [out, *out.rglob("*")]})

    try:
        train(tiny, out, look)
    finally:
        os.umask(before)
    look()
    kept = {path: mode for modes in seen for path, mode in modes.items()}
    assert {mode for path, mode in kept.items() if path.suffix == ""} == {0o700}
    private = [mode for path, mode in kept.items() if path.suffix in {".safetensors", ".json", ".csv"}]
    assert set(private) == {0o600}
    assert len(private) >= 5


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_serves(tiny, tmp_path):
    train(tiny, tmp_path)
    (tmp_path / "manifest.json").unlink()
    weights = (tmp_path / "model.safetensors").read_bytes()
    newest = max((tmp_path / "run").glob("checkpoint-*"))
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(bytes(content))
    with pytest.raises(BundleInvalid) as caught:
        train(tiny, tmp_path, resume=True)
    assert str(newest) in caught.value.hint
    newest.unlink()
    train(tiny, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_more_steps_begin_where_the_run_ended_and_survive_a_kill(small, spots, tmp_path):
    """To the last bit, killed on the way or not; meanwhile the shorter bundle stays."""
    longer = small.model_copy(update={"steps": 20})
    weights = []
    for name, stops in (("whole", ()), ("halves", (14, 17))):
        out = tmp_path / name
        train(small, out, source=spots)
        for step in stops:
            with pytest.raises(KeyboardInterrupt):
                train(longer, out, stop_at(step), source=spots, resume=True)
            assert load_bundle(out).manifest.training.steps == 12
        seen = []
        train(longer, out, seen.append, source=spots, resume=True)
        assert seen[0].step == (stops[-1] if stops else 12) + 1
        assert load_bundle(out).manifest.training.steps == 20
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    with pytest.raises(StateConflict):
        train(small, tmp_path / "whole", source=spots, resume=True)


@pytest.mark.slow
def test_what_no_weight_depends_on_may_change_without_training(small, spots, tmp_path):
    """The name and the softening of a finished run, and of one that is resumed."""
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(small, tmp_path, stop_at(7), source=spots)
    softer = small.model_copy(update={"soften_sigma": 0.1})
    first = train(softer, tmp_path, source=spots, resume=True)
    assert first.manifest.soften_sigma == 0.1
    steps: list[int] = []
    named = softer.model_copy(update={"name": "dots", "soften_sigma": 0.0})
    again = train(named, tmp_path, steps.append, source=spots, resume=True, say=said.append)
    assert (again.manifest.name, again.manifest.soften_sigma) == ("dots", 0.0)
    assert again.manifest.weights_sha256 == first.manifest.weights_sha256
    assert steps == []
    assert any("written again" in text for text in said)


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tmp_path):
    with pytest.raises(SettingsInvalid, match="after"):
        train(tiny_points(learning_rate=1e30, clip=1e30), tmp_path)


def test_a_torn_line_of_progress_is_dropped(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text(f"{','.join(Row._fields)}\n{Row(10, 0.5, None, 1e-3, 1.0, 1.0).line()}20,0.4")
    assert [row.step for row in read_progress(path)] == [10]


@pytest.mark.slow
def test_a_short_run_learns_pictures(spots, tmp_path):
    """From knowing nothing; and from a Gaussian model of the pictures, which is ahead to begin with, from there."""
    found = {}
    for spectral in (False, True):
        network = {**TINY_NETWORK, "spectral": spectral}
        config = tiny_pictures(network=network, steps=80, checkpoint_every=40, learning_rate=3e-3, ema=0.9)
        train(config, tmp_path / str(spectral), source=spots)
        rows = rows_of(tmp_path / str(spectral))
        found[spectral] = float(rows[0]["loss"]), float(rows[-1]["held_out"])
    assert found[False][1] < 0.75 < found[False][0]
    assert found[True][1] < 0.95 * found[True][0] < found[False][0]

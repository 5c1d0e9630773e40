"""Private runs from data to manifest: what they spend, resumed or not, and what they refuse."""

import json
import shutil
import sys

import pytest
from pydantic import ValidationError

from ddib_fed.errors import ExtraMissing, SettingsInvalid, StateConflict
from ddib_fed.lab.config import PrivateTrainConfig
from ddib_fed.lab.private import KEY_FILE, require_private
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training.checkpoint import latest_checkpoint
from ddib_fed.training.run import train
from tests.training.pictures.examples import spots_source

pytest.importorskip("opacus")


class StoppedError(Exception):
    """Ends a run."""


def stop_at(step):
    def look(progress):
        if progress.step == step:
            raise StoppedError

    return look


@pytest.fixture
def pictures():
    """A private run on pictures of two seconds."""
    return PrivateTrainConfig(
        kind="pictures",
        network={"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1},
        batch=8,
        steps=6,
        warmup=2,
        checkpoint_every=3,
        samples=2,
        flip=True,
        classes="given",
        label_dropout=0.2,
        dtype="float32",
        dp_epsilon=8.0,
        dp_delta=1e-3,
        dp_draws=2,
        dp_accountant="rdp",
    )


@pytest.mark.slow
def test_a_run_says_what_it_spent(private, tmp_path):
    """In the manifest, which survives a round trip; and what it plans, before it takes a step."""
    from opacus.accountants import RDPAccountant

    said = []
    made = train(private, tmp_path / "m", say=said.append).manifest
    spent = made.differential_privacy
    assert (spent.delta, spent.clip, spent.steps, spent.draws) == (1e-4, 1.0, 24, 2)
    assert spent.sampling_rate == pytest.approx(54 / 540)
    assert 7.9 < spent.epsilon <= 8.0
    own = RDPAccountant()
    own.history = [(spent.noise_multiplier, spent.sampling_rate, spent.steps)]
    assert own.get_epsilon(spent.delta) == spent.epsilon
    assert load_bundle(tmp_path / "m").manifest == made
    assert any("epsilon 8 at delta 0.0001" in line for line in said)
    assert not (tmp_path / "m" / "run" / KEY_FILE).exists()


@pytest.mark.slow
def test_a_resumed_run_is_and_spends_what_an_uninterrupted_one_does(private, tmp_path):
    """With one key; three steps after the checkpoint it resumes from are taken again."""
    key = tmp_path / "through" / "run" / KEY_FILE
    kept = []

    def keep(progress):
        if progress.step == 1:
            kept.append(key.read_bytes())

    through = train(private, tmp_path / "through", keep)
    out = tmp_path / "stopped"
    (out / "run").mkdir(parents=True)
    (out / "run" / KEY_FILE).write_bytes(kept[0])
    with pytest.raises(StoppedError):
        train(private, out, stop_at(10))
    shutil.rmtree(out / "run" / "checkpoint-00000010")
    history = latest_checkpoint(out / "run").part("privacy")["history"]
    assert history[:, 2].tolist() == [7.0]
    resumed = train(private, out, resume=True)
    assert resumed.manifest.differential_privacy == through.manifest.differential_privacy
    assert resumed.manifest.weights_sha256 == through.manifest.weights_sha256


@pytest.mark.slow
def test_a_run_without_its_key_is_not_resumed_and_a_finished_one_needs_none(private, tmp_path):
    """A finished one is written again when only its name changes."""
    out = tmp_path / "m"
    with pytest.raises(StoppedError):
        train(private, out, stop_at(10))
    secret = (out / "run" / KEY_FILE).read_bytes()
    (out / "run" / KEY_FILE).unlink()
    with pytest.raises(StateConflict, match="spend twice"):
        train(private, out, resume=True)
    (out / "run" / KEY_FILE).write_bytes(secret)
    before = train(private, out, resume=True).manifest
    after = train(private.model_copy(update={"name": "other"}), out, resume=True).manifest
    assert (after.name, after.differential_privacy) == ("other", before.differential_privacy)
    assert not (out / "run" / KEY_FILE).exists()


@pytest.mark.slow
def test_two_runs_of_one_seed_have_other_noise(private, tmp_path):
    """The seed is in the manifest, so nothing that hides a sample may follow from it."""
    first, second = (train(private, tmp_path / name).manifest for name in ("a", "b"))
    assert first.weights_sha256 != second.weights_sha256
    assert first.differential_privacy == second.differential_privacy


@pytest.mark.slow
def test_pictures_have_no_figures_of_training_pictures(pictures, tmp_path):
    """Nor a spectrum; thresholds come from held-out pictures alone."""
    made = train(pictures, tmp_path / "m", source=spots_source()).manifest
    assert made.differential_privacy.steps == 6
    assert not [name for name in made.training.figures if "nearest" in name]
    assert not made.network.spectral
    assert made.structure.count <= 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": None, "domain": "moons"}, "domain"),
        ({"time_s": 5.0, "steps": None}, "time_s"),
        ({"reference": 27}, "reference"),
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"dp_epsilon": 0.0}, "dp_epsilon"),
        ({"dp_delta": 1.0}, "dp_delta"),
        ({"dp_clip": float("inf")}, "dp_clip"),
    ],
)
def test_settings_that_cannot_be_private_are_refused(private, change, said):
    with pytest.raises(ValidationError, match=said):
        PrivateTrainConfig(**private.model_dump() | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {"spectral": True}}, "spectral"),
        ({"network": {"dropout": 0.1}}, "dropout"),
    ],
)
def test_settings_of_pictures_that_cannot_be_private_are_refused(pictures, change, said):
    with pytest.raises(ValidationError, match=said):
        PrivateTrainConfig(**pictures.model_dump() | change)


@pytest.mark.parametrize(
    ("samples", "processes", "said"),
    [(540, 2, "one process"), (50, 1, "too few"), (10_000, 1, "delta")],
)
def test_a_run_that_would_promise_too_much_is_refused(private, samples, processes, said):
    require_private(private, 540, 1)
    with pytest.raises(SettingsInvalid, match=said):
        require_private(private, samples, processes)


def test_without_the_extra_nothing_is_written(private, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ExtraMissing) as caught:
        train(private, tmp_path / "m")
    assert "pip install opacus" in caught.value.hint
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_the_command_trains_and_show_prints_it(points, tmp_path):
    from click.testing import CliRunner

    from ddib_fed.cli.model import model
    from ddib_fed.lab.commands import privacy

    def ddib(*arguments):
        group = privacy if arguments[0] == "train" else model
        found = CliRunner().invoke(
            group, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False
        )
        return found.output

    out = tmp_path / "m"
    ddib(
        *("train", "--data", points, "--out", out, "--steps", 8, "--batch", 54, "--set", "width=16"),
        *("--dp-epsilon", 4, "--dp-delta", 1e-4, "--dp-clip", 0.5, "--dp-draws", 1, "--dp-accountant", "rdp"),
    )
    shown = ddib("show", out)
    assert "for each training sample" in shown
    assert "Not covered: pictures that are translated" in shown
    values = json.loads(ddib("show", out, "--format", "json"))["differential_privacy"]
    assert (values["clip"], values["unit"], values["accountant"]) == (0.5, "sample", "rdp")

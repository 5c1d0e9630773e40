"""`ddib bridge` translates and comes back in one process, and writes all that it found."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.cli.models.bridge import bridge
from ddib_fed.datasets.synthetic import sample
from ddib_fed.errors import (
    AlreadyExists,
    DdibError,
    ModelNotFound,
    SettingsInvalid,
    ShapeMismatch,
    UsageError,
)
from ddib_fed.models.bundle import save_bundle
from ddib_fed.models.units.normalisation import Normalisation
from tests.models.examples import manifest, state

PAIR = ("--source", "moons", "--target", "1")


@pytest.fixture
def ddib():
    """Run a command of the group; errors of ours come out as they are."""

    def call(*arguments):
        return CliRunner().invoke(
            bridge, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False
        )

    return call


@pytest.mark.slow
def test_a_cycle_writes_five_stages_pictures_and_figures(ddib, tmp_path):
    ddib("cycle", *PAIR, "--n", "400", "--out", tmp_path)
    stages = ("source", "latent", "target", "latent-again", "source-again")
    for stage in stages:
        assert np.load(tmp_path / f"{stage}.npy").shape == (400, 2)
        assert (tmp_path / f"{stage}-scatter.png").exists()
        assert (tmp_path / f"{stage}-heatmap.png").exists()
    assert (tmp_path / "cycle.png").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["cycle"]["median"] < 3e-4
    assert report["evaluations"] == {"per_leg": 48, "legs": 4, "per_point": 192}
    assert report["target_cloud"].keys() >= {"sliced_w2", "sliced_w2_floor", "energy", "energy_floor"}
    assert report["latent"].keys() >= {"mean", "std", "kurtosis", "correlation"}
    assert report["seconds"].keys() == {"wall", "cpu"}
    assert report["seed"] == 0


@pytest.mark.slow
def test_the_figures_are_those_of_the_files(ddib, tmp_path):
    ddib("cycle", *PAIR, "--n", "300", "--steps", "24", "--out", tmp_path)
    gap = np.load(tmp_path / "source.npy") - np.load(tmp_path / "source-again.npy")
    report = json.loads((tmp_path / "report.json").read_text())
    assert np.linalg.norm(gap, axis=1).max() == pytest.approx(report["cycle"]["max"], rel=1e-3)


def test_points_are_drawn_only_for_a_model_of_a_synthetic_domain(ddib, tmp_path):
    """One that is called moons after its user's file has points of its own."""
    units = Normalisation(mean=5.0, std=2.0)
    save_bundle(tmp_path / "own", manifest().model_copy(update={"normalisation": units}), state())
    with pytest.raises(UsageError, match="nothing to draw") as refused:
        ddib("translate", "--source", tmp_path / "own", "--target", "moons", "--out", tmp_path / "t")
    assert "--input" in refused.value.hint


@pytest.mark.slow
def test_a_translation_has_three_stages_and_translates_given_points(ddib, tmp_path):
    np.save(tmp_path / "points.npy", sample("moons", 123, 5))
    ddib("translate", *PAIR, "--input", tmp_path / "points.npy", "--out", tmp_path / "t")
    assert np.array_equal(np.load(tmp_path / "t" / "source.npy"), sample("moons", 123, 5))
    assert np.load(tmp_path / "t" / "target.npy").shape == (123, 2)
    assert (tmp_path / "t" / "translation.png").exists()
    assert not (tmp_path / "t" / "source-again.npy").exists()


@pytest.mark.slow
def test_the_public_codes_levels_can_be_followed(ddib, tmp_path):
    ddib(
        "translate",
        *PAIR,
        "--n",
        "50",
        "--compat",
        "ddib",
        "--solver",
        "ddim",
        "--steps",
        "50",
        "--out",
        tmp_path,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["grid"] == "ddib"


@pytest.mark.slow
def test_results_are_not_overwritten_unless_told_so(ddib, tmp_path):
    ddib("translate", *PAIR, "--n", "20", "--steps", "12", "--out", tmp_path)
    with pytest.raises(AlreadyExists):
        ddib("translate", *PAIR, "--n", "20", "--steps", "12", "--out", tmp_path)
    ddib("translate", *PAIR, "--n", "20", "--steps", "12", "--out", tmp_path, "--force")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--compat", "ddib"), UsageError),
        (("--solver", "rk4", "--steps", "47"), SettingsInvalid),
        (("--order", "4"), SettingsInvalid),
        (("--target", "nowhere"), ModelNotFound),
    ],
)
def test_what_cannot_be_done_is_named_before_anything_is_written(ddib, tmp_path, options, error):
    with pytest.raises(error):
        ddib("translate", *PAIR, *options, "--out", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_points_of_another_dimension_are_refused(ddib, tmp_path):
    np.save(tmp_path / "points.npy", np.zeros((5, 3)))
    with pytest.raises(ShapeMismatch):
        ddib("translate", *PAIR, "--input", tmp_path / "points.npy", "--out", tmp_path / "t")


def test_a_file_that_is_no_array_is_refused(ddib, tmp_path):
    (tmp_path / "points.npy").write_bytes(b"not an array")
    with pytest.raises(DdibError) as caught:
        ddib("translate", *PAIR, "--input", tmp_path / "points.npy", "--out", tmp_path / "t")
    assert "points.npy" in caught.value.detail

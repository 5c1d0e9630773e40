"""A run's folder: nothing is replaced without being told so, and what cannot be read says what to do."""

import pytest

from ddib_fed.errors import AlreadyExists, BundleInvalid, StateConflict
from ddib_fed.models.catalogue import MANIFEST_FILE
from ddib_fed.training.checkpoint import RunFolder, run_identity
from ddib_fed.training.config import TrainConfig


@pytest.fixture
def place(tmp_path):
    made = RunFolder(tmp_path / "model", "points")
    made.begin(TrainConfig(kind="points", domain="moons", steps=3))
    return made


def test_an_unfinished_run_is_resumed_or_replaced_only_when_told(place):
    with pytest.raises(AlreadyExists, match="unfinished"):
        place.found(TrainConfig, resume=False, force=False)
    assert place.found(TrainConfig, resume=True, force=False).steps == 3
    assert place.found(TrainConfig, resume=False, force=True) is None
    assert not place.run.exists()


def test_a_finished_model_is_replaced_only_when_told(place):
    (place.out / MANIFEST_FILE).write_text("{}")
    (place.run / "run.json").unlink()
    with pytest.raises(AlreadyExists, match="finished"):
        place.found(TrainConfig, resume=True, force=False)
    assert place.finished(["anything"])
    place.found(TrainConfig, resume=False, force=True)
    assert not place.finished(["anything"])


def test_settings_that_cannot_be_read_say_what_to_do(place):
    (place.run / "run.json").write_text('{"steps": "many"}')
    with pytest.raises(BundleInvalid, match="cannot be read") as caught:
        place.found(TrainConfig, resume=True, force=False)
    assert "--force" in caught.value.hint


def test_an_identity_follows_from_settings_and_data():
    assert run_identity("a", "b") != run_identity("a", "c")
    assert run_identity("a", "b") == run_identity("a", "b")


def test_another_run_names_the_folder_and_the_settings(place):
    error = place.other_run()
    assert isinstance(error, StateConflict)
    assert str(place.out) in error.detail
    assert "run.json" in error.hint

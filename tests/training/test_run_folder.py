"""A run's folder: nothing is replaced without being told so, and what cannot be read says what to do."""

import pytest

from ddib_fed.errors import BundleInvalid
from ddib_fed.training.checkpoint import RunFolder
from ddib_fed.training.config import TrainConfig


@pytest.fixture
def place(tmp_path):
    made = RunFolder(tmp_path / "model", "points")
    made.begin(TrainConfig(kind="points", domain="moons", steps=3))
    return made


def test_settings_that_cannot_be_read_say_what_to_do(place):
    (place.run / "run.json").write_text('{"steps": "many"}')
    with pytest.raises(BundleInvalid, match="cannot be read") as caught:
        place.found(TrainConfig, resume=True, force=False)
    assert "--force" in caught.value.hint

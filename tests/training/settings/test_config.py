"""A config refuses what contradicts itself, and knows which runs are the same."""

import pytest
from pydantic import ValidationError

from ddib_fed.training.settings.config import ClassifierTrainConfig, PictureTrainConfig, PointTrainConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"domain": "moons", "data": "points.npy"},
        {"domain": "moons", "steps": 5, "time_s": 5},
        {"domain": "moons", "steps": 0},
        {"domain": "moons", "batch": 100},
        {"domain": "moons", "batch": 256, "levels": 256, "reference": 1024},
        {"domain": "moons", "seed": -1},
        {"domain": "moons", "ema": 1.0},
        {"domain": "moons", "learning_rat": 1e-3},
    ],
)
def test_contradictions_and_unknown_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        PointTrainConfig(**wrong)


def test_where_things_lie_and_what_they_are_called_is_not_part_of_a_run():
    one = PointTrainConfig(
        domain="moons", steps=5, command="a", name="x", dtype="float16", checkpoint_every=1
    )
    assert one.identity() == PointTrainConfig(domain="moons", steps=5).identity()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 6}, {"threads": 2}, {"precision": "bfloat16"}, {"width": 8}]
)
def test_what_changes_the_weights_makes_another_run(change):
    base = {"domain": "moons", "steps": 5}
    assert PointTrainConfig(**base).identity() != PointTrainConfig(**base | change).identity()


def test_a_run_is_called_after_its_name_its_domain_or_its_file(tmp_path):
    assert PointTrainConfig(domain="moons").label == "moons"
    assert PointTrainConfig(data=tmp_path / "cells.npy").label == "cells"
    assert PointTrainConfig(domain="moons", name="mine").label == "mine"


def test_runs_that_an_earlier_release_began_are_the_same_runs_now(tiny):
    """Their identities, as that release computed them: another order of fields, or a new one, would refuse a resume."""
    network = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    change = {"batch": 8, "steps": 12, "warmup": 2, "flip": True}
    pictures = PictureTrainConfig(network=network, **change).settled()
    classifier = ClassifierTrainConfig(network=network, classes="given", **change).settled()
    found = [config.identity()[:16] for config in (tiny, pictures, classifier)]
    assert found == ["ce97e58f4bce7b41", "21d11301b12d3824", "867cb89368d9ab25"]

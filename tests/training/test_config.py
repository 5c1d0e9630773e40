"""A config refuses what contradicts itself, and knows which runs are the same."""

import pytest
from pydantic import ValidationError

from ddib_fed.training.config import TrainConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"domain": "moons", "data": "points.npy"},
        {"domain": "moons", "steps": 5, "time_s": 5},
        {"domain": "moons", "steps": 0},
        {"domain": "moons", "batch": 100, "levels": 256},
        {"domain": "moons", "batch": 256, "levels": 256, "reference": 1024},
        {"domain": "moons", "seed": -1},
        {"domain": "moons", "ema": 1.0},
        {"domain": "moons", "learning_rat": 1e-3},
    ],
)
def test_contradictions_and_unknown_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainConfig(**wrong)


def test_where_things_lie_and_what_they_are_called_is_not_part_of_a_run():
    one = TrainConfig(
        kind="points", domain="moons", steps=5, command="a", name="x", dtype="float16", checkpoint_every=1
    )
    assert one.identity() == TrainConfig(kind="points", domain="moons", steps=5).identity()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 6}, {"threads": 2}, {"precision": "bfloat16"}, {"width": 8}]
)
def test_what_changes_the_weights_makes_another_run(change):
    base = {"domain": "moons", "steps": 5}
    assert (
        TrainConfig(kind="points", **base).identity()
        != TrainConfig(kind="points", **base | change).identity()
    )


def test_a_run_is_called_after_its_name_its_domain_or_its_file(tmp_path):
    assert TrainConfig(kind="points", domain="moons").label == "moons"
    assert TrainConfig(kind="points", data=tmp_path / "cells.npy").label == "cells"
    assert TrainConfig(kind="points", domain="moons", name="mine").label == "mine"


def test_a_run_is_on_what_it_names():
    """A kind need be said where pictures are handed over, or classified."""
    assert TrainConfig(domain="moons").kind == TrainConfig(data="x.npy").kind == "points"
    assert TrainConfig(images="x").kind == TrainConfig(domain="relief").kind == "pictures"


@pytest.mark.parametrize("kind", ["points", "pictures", "classifier"])
def test_a_settled_run_is_read_as_it_was_written(kind):
    """Under the same identity."""
    named = {"domain": "moons"} if kind == "points" else {"classes": "given"}
    config = TrainConfig(kind=kind, **named).settled()
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again.identity() == config.identity()
    assert again.settled() == again

"""A config refuses what contradicts itself, and knows which runs are the same."""

import pytest
from pydantic import ValidationError

from ddib_fed.errors import UsageError
from ddib_fed.training.config import RunPlan, TrainConfig, learning_rate


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"domain": "moons", "data": "points.npy"},
        {"domain": "moons", "steps": 5, "time_s": 5},
        {"domain": "moons", "learning_rat": 1e-3},
        {"kind": "pictures", "preset": "huge"},
        {"kind": "pictures", "label_dropout": 0.1},
        {"kind": "pictures", "domain": "relief", "range": "0:1"},
        {"kind": "classifier", "classes": None},
    ],
)
def test_contradictions_and_unknown_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainConfig(**wrong)


def test_where_things_lie_and_what_they_are_called_is_not_part_of_a_run():
    base = {"domain": "moons", "steps": 5}
    free = {"command": "a", "name": "x", "checkpoint_every": 1}
    assert TrainConfig(**base, **free).identity("data") == TrainConfig(**base).identity("data")
    assert TrainConfig(**base).identity("data") != TrainConfig(**base).identity("other data")
    for change in ({"seed": 1}, {"threads": 2}, {"precision": "bfloat16"}, {"width": 8}):
        assert TrainConfig(**base | change).identity("data") != TrainConfig(**base).identity("data")


def test_fields_without_an_option_are_set_by_name():
    """Of the run, or of its network; an unknown one is refused with the nearest."""
    found = TrainConfig.checked(
        {"images": "x"}, "help", ["ema=0", "crop=true", "channels=1", "model_channels=48", "channel_mult=1,2"]
    )
    assert (found.ema, found.crop, found.channels) == (0.0, True, 1)
    assert (found.network["model_channels"], found.network["channel_mult"]) == (48, [1, 2])
    public = TrainConfig.checked({"domain": "moons"}, "help", ["network=public", "num_res_blocks=3"])
    assert public.public
    assert public.network["num_res_blocks"] == 3
    with pytest.raises(UsageError) as refused:
        TrainConfig.checked({"images": "x"}, "help", ["label_dropuot=0.1"])
    assert "label_dropout" in refused.value.hint
    with pytest.raises(UsageError, match="FIELD=VALUE"):
        TrainConfig.checked({"images": "x"}, "help", ["ema"])
    with pytest.raises(UsageError, match="--set width is for points"):
        TrainConfig.checked({"images": "x"}, "help", ["width=8"])


def test_the_rate_warms_up_falls_to_nothing_and_continues_where_the_length_is_planned_again():
    """Without a jump; a run that is given more begins a new cosine."""
    config, first = TrainConfig(kind="pictures", size=8), RunPlan(total=1_000)
    rates = [learning_rate(config, first, step) for step in range(1_000)]
    assert rates[0] == pytest.approx(config.learning_rate / 200, rel=0.01)
    assert max(rates) == pytest.approx(config.learning_rate, rel=0.1)
    assert rates[-1] < 1e-4 * config.learning_rate
    for total in (600, 4_000):
        made = first.renewed(500, total)
        assert learning_rate(config, made, 500) == pytest.approx(rates[500])
        assert learning_rate(config, made, total - 1) < rates[990]
    longer = RunPlan(total=3_000, step=990, share=990 / 3_000)
    assert learning_rate(config, longer, 990) > 20 * rates[990]

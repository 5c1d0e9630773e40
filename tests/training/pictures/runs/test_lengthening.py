"""A run that is given more steps goes on from where it is, as one that was killed in between does."""

from __future__ import annotations

import pytest

from ddib_fed.errors import StateConflict
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training.lengthening import identities, lengthened
from ddib_fed.training.run import train
from ddib_fed.training.settings.config import PictureTrainConfig, learning_rate
from tests.training.pictures.runs.test_run import stop_at


def longer(config: PictureTrainConfig, steps: int) -> PictureTrainConfig:
    return config.model_copy(update={"steps": steps})


@pytest.mark.slow
def test_more_steps_begin_where_the_run_ended_and_survive_a_kill(tiny, spots, tmp_path):
    """To the last bit, killed on the way or not; meanwhile the shorter bundle stays."""
    weights = []
    for name, stops in (("whole", ()), ("halves", (14, 17))):
        out = tmp_path / name
        train(tiny, out, source=spots)
        for step in stops:
            with pytest.raises(KeyboardInterrupt):
                train(longer(tiny, 20), out, stop_at(step), source=spots, resume=True, lengthen=True)
            assert load_bundle(out).manifest.training.steps == 12
        seen = []
        train(longer(tiny, 20), out, seen.append, source=spots, resume=True, lengthen=True)
        assert seen[0].step == (stops[-1] if stops else 12) + 1
        assert load_bundle(out).manifest.training.steps == 20
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    # Another length, or another seed, is still another run.
    with pytest.raises(StateConflict):
        train(tiny, tmp_path / "whole", source=spots, resume=True, lengthen=True)
    other = longer(tiny, 30).model_copy(update={"seed": 9})
    with pytest.raises(StateConflict):
        train(other, tmp_path / "whole", source=spots, resume=True, lengthen=True)
    assert load_bundle(tmp_path / "whole").manifest.training.steps == 20


@pytest.mark.slow
def test_a_resumed_run_is_not_lengthened_unless_told(tiny, spots, tmp_path):
    """`ddib model train --resume` with other steps is another run, as ever."""
    train(tiny, tmp_path, source=spots)
    with pytest.raises(StateConflict):
        train(longer(tiny, 20), tmp_path, source=spots, resume=True)


def settled(**changes: object) -> PictureTrainConfig:
    return PictureTrainConfig(size=8).settled(**{"steps": 100, **changes})


def test_more_time_is_more_steps_and_the_same_time_none():
    """Of the time beyond the first, by what a step costs now; steps that were asked for count as they are."""
    stored = settled(timed_s=60.0)
    asked = PictureTrainConfig(size=8, time_s=180.0)
    made = lengthened(stored, asked, 100, lambda: 0.5)
    assert made is not None
    assert (made.steps, made.timed_s, made.lengthened) == (100 + int(120 * 0.93 / 0.5), 180.0, ((100, 100),))
    same = asked.model_copy(update={"time_s": 60.0})
    assert lengthened(stored, same, 100, lambda: pytest.fail("nothing is to be measured")) is None
    assert lengthened(stored, PictureTrainConfig(size=8), 100, lambda: 0.5) is None
    counted = lengthened(settled(), PictureTrainConfig(size=8, time_s=93.0), 100, lambda: 0.5)
    assert counted is None or counted.steps == int(93 * 0.93 / 0.5)


def test_a_run_knows_its_earlier_identities():
    """And nothing else's: a checkpoint of another length is another run's."""
    first = settled()
    second = lengthened(first, longer(first, 150), 100, lambda: 1.0)
    third = lengthened(second, longer(first, 300), 120, lambda: 1.0)
    assert identities(third) == [third.identity(), first.identity(), second.identity()]
    assert longer(first, 300).identity() not in identities(third)


def test_a_run_that_has_not_begun_is_only_as_long_as_asked():
    """Without a checkpoint there is nothing that its weights could depend on."""
    made = lengthened(settled(), settled(steps=200), 0, lambda: 1.0)
    assert made.identity() == settled(steps=200).identity()


def test_private_runs_keep_their_length():
    """Their noise was chosen for it."""
    private = settled().model_copy(update={"dp_epsilon": 8.0})
    assert lengthened(private, longer(private, 200), 100, lambda: 1.0) is None


def test_the_rate_rises_again():
    """As in a warm restart: at the end of the shorter run it was nearly nothing."""
    first = settled()
    assert learning_rate(longer(first, 300), 99) > 20 * learning_rate(first, 99)

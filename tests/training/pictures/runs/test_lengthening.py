"""A run that is given more steps goes on from where it is, as one that was killed in between does."""

from __future__ import annotations

import json

import pytest

from ddib_fed.errors import StateConflict
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training.config import TrainConfig, learning_rate
from ddib_fed.training.run import train
from tests.training.pictures.runs.test_run import stop_at


def longer(config: TrainConfig, steps: int) -> TrainConfig:
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


def settled(**changes: object) -> TrainConfig:
    return TrainConfig(kind="pictures", size=8).settled(**{"steps": 100, **changes})


@pytest.mark.slow
def test_more_time_is_more_steps_and_the_same_time_none(tiny, spots, tmp_path):
    """The time in all is what is asked for, with what the run took before."""
    timed = tiny.model_copy(update={"steps": None, "time_s": 0.5})
    first = train(timed, tmp_path, source=spots)
    assert train(timed, tmp_path, source=spots, resume=True, lengthen=True).digest == first.digest
    done = first.manifest.training.steps
    more = timed.model_copy(update={"time_s": 600.0})
    with pytest.raises(KeyboardInterrupt):
        train(more, tmp_path, stop_at(done + 1), source=spots, resume=True, lengthen=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] > done + 1


def test_the_rate_goes_on_where_the_length_is_planned_again():
    """Without a jump, and down to nothing at the new end; a longer run's begins a new cosine."""
    first = settled()
    for total in (60, 400):
        made = first.replanned(50, total)
        assert learning_rate(made, 49) == learning_rate(first, 49)
        assert learning_rate(made, 50) == pytest.approx(learning_rate(first, 50))
        assert learning_rate(made, total - 1) < learning_rate(first, 90)
    assert learning_rate(first.replanned(99, 300, 99 / 300), 99) > 20 * learning_rate(first, 99)

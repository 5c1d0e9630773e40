"""steps.json: what is written is what is read, its numbers are bounded, and the model's digest does not know of it."""

from __future__ import annotations

import json

import pytest

from ddib_fed.errors import BundleInvalid
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.catalogue import STEPS_FILE
from ddib_fed.models.sidecars import Errors, Tuned, TunedLeg
from ddib_fed.training.tune import put_legs
from tests.models.examples import manifest, state

ERROR = Errors(mean=0.02, low=0.01, high=0.03, median=0.015, p99=0.1)


def leg(stage="decode", evaluations=4, **changes):
    fields = {
        "stage": stage,
        "evaluations": evaluations,
        "order": 3,
        "coordinates": "angle",
        "lams": tuple(5.3 - 10.3 * i / evaluations for i in range(evaluations + 1)),
        "held_out": 10,
        "error": ERROR,
        "default_error": ERROR,
        "yardstick": 48,
        "yardstick_error": ERROR,
        "reference_gap": 1e-6,
    }
    return TunedLeg.model_validate({**fields, **changes})


@pytest.fixture
def saved(tmp_path):
    save_bundle(tmp_path / "model", manifest(), state())
    return tmp_path / "model"


def damaged(folder, change):
    """The message of loading a bundle whose steps.json was changed."""
    put_legs(folder, [leg()])
    path = folder / STEPS_FILE
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(BundleInvalid) as refused:
        load_bundle(folder)
    assert "ddib model tune" in str(refused.value.hint)
    return refused.value.detail


def test_steps_are_kept_beside_the_weights_and_change_no_digest(saved):
    """Contracts and calibrations name the digest; tuning must not void them."""
    before = load_bundle(saved)
    assert before.tuned is None
    put_legs(saved, [leg(), leg("encode")], command="c")
    after = load_bundle(saved)
    assert after.digest == before.digest
    assert after.tuned.evaluations == (4,)
    assert after.tuned.command == "c"
    assert after.learned.find("decode", 4).lams == leg().lams


def test_tuning_again_replaces_the_same_leg_and_keeps_the_others(saved):
    """By direction, softening and number."""
    put_legs(saved, [leg(), leg("encode")])
    put_legs(saved, [leg(order=4), leg(evaluations=6)])
    kept = {each.key: each.order for each in load_bundle(saved).tuned.legs}
    assert kept == {("decode", 0.0, 4): 4, ("decode", 0.0, 6): 3, ("encode", 0.0, 4): 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda leg: leg["lams"].__setitem__(1, leg["lams"][0]), "must fall"),
        (lambda leg: leg["lams"].__setitem__(0, 1e9), "less than or equal to 30"),
        (lambda leg: leg.update(evaluations=10_000), "less than or equal to 64"),
        (lambda leg: leg.update(run="rm"), "Extra inputs"),
    ],
)
def test_numbers_out_of_range_are_refused(saved, change, words):
    """Before anything is computed with them."""
    assert words in damaged(saved, lambda fields: change(fields["legs"][0]))


def test_too_many_legs_and_too_large_a_file_are_refused(saved, monkeypatch):
    """A file from elsewhere cannot fill memory."""
    assert "two legs" in damaged(saved, lambda f: f.update(legs=f["legs"] * 2))
    (saved / STEPS_FILE).unlink()
    assert "at most 64 items" in damaged(saved, lambda f: f.update(legs=f["legs"] * 65))
    (saved / STEPS_FILE).write_bytes(b" " * (Tuned.max_bytes + 1))
    with pytest.raises(BundleInvalid, match="larger than"):
        load_bundle(saved)

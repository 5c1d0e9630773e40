"""gate.json: what is written is what is read, its numbers are bounded, and the model's digest does not know of it."""

from __future__ import annotations

import json

import pytest

from ddib_fed.errors import BundleInvalid
from ddib_fed.models.bundle import load_bundle, put_beside, save_bundle
from ddib_fed.models.sidecars import Allowances, PictureAllowances
from tests.models.examples import manifest, state

BOUNDS = PictureAllowances(names=("mean",), low=(-0.1,), high=(0.1,))


@pytest.fixture
def saved(tmp_path):
    save_bundle(tmp_path / "model", manifest(), state())
    return tmp_path / "model"


def allowances(folder, **changes) -> Allowances:
    fields = {
        "weights_sha256": load_bundle(folder).manifest.weights_sha256,
        "soften_sigma": 0.0,
        "measured": 10,
        "checked": 2,
        "beyond": 0,
        "pictures": BOUNDS,
    }
    return Allowances.model_validate({**fields, **changes})


def test_allowances_lie_beside_the_weights_and_change_no_digest(saved):
    """Contracts and calibrations name the digest; a measurement must not void them."""
    before = load_bundle(saved)
    put_beside(saved, allowances(saved))
    after = load_bundle(saved)
    assert after.digest == before.digest
    assert (before.allowances, after.allowances) == (None, allowances(saved))
    assert (saved / Allowances.file).stat().st_mode == (saved / "manifest.json").stat().st_mode


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields.update(weights_sha256="0" * 64), "other weights"),
        (lambda fields: fields["pictures"].update(low=[0.2]), "above"),
        (lambda fields: fields.update(unknown=1), "unknown"),
    ],
)
def test_a_changed_file_is_refused_with_what_to_do(saved, change, said):
    """It may come from anywhere."""
    fields = json.loads(allowances(saved).text())
    change(fields)
    (saved / Allowances.file).write_text(json.dumps(fields))
    with pytest.raises(BundleInvalid) as refused:
        load_bundle(saved)
    assert said in refused.value.detail
    assert "ddib model measure" in str(refused.value.hint)

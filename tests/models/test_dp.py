"""The manifest's statement of differential privacy: bounded, optional, and in the digest only where it is there."""

import pytest
from pydantic import ValidationError

from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.manifest import DifferentialPrivacy
from tests.models.examples import manifest, state

SPENT = DifferentialPrivacy(
    epsilon=7.99, delta=1e-5, noise_multiplier=1.2, clip=1.0, sampling_rate=0.05, steps=3000, draws=4
)


def test_it_is_kept_and_part_of_the_digest(tmp_path):
    with_it = manifest().model_copy(update={"differential_privacy": SPENT})
    save_bundle(tmp_path / "m", with_it, state())
    read = load_bundle(tmp_path / "m")
    assert read.manifest.differential_privacy == SPENT
    save_bundle(tmp_path / "plain", manifest(), state())
    assert load_bundle(tmp_path / "plain").digest != read.digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": float("inf")},
        {"delta": 1.0},
        {"noise_multiplier": float("nan")},
        {"clip": float("inf")},
        {"sampling_rate": 1.5},
        {"steps": 0},
        {"accountant": "own"},
        {"unit": "patient"},
        {"initial": "x"},
        {"more": 1},
    ],
)
def test_what_no_run_spends_is_refused(wrong):
    with pytest.raises(ValidationError):
        DifferentialPrivacy.model_validate({**SPENT.model_dump(), **wrong})

"""The models that ship are whole, small and found by name alone."""

from __future__ import annotations

import pytest

from ddib_fed.errors import ModelNotFound
from ddib_fed.models.bundle import pretrained, shipped_calibration
from ddib_fed.models.catalogue import shipped_folder, shipped_names


@pytest.mark.parametrize("domain", shipped_names())
def test_shipped_models_verify_and_are_small(domain):
    """Each is whole and under 4 MB; a calibration lies beside the model that was trained with it."""
    bundle = pretrained(domain)
    assert bundle.manifest.domain == domain.split("-as-")[0]
    calibrated = bundle.manifest.normalisation.calibrated
    assert (shipped_calibration(domain) is None) == (calibrated is None)
    folder = shipped_folder() / domain
    assert sum(len(entry.read_bytes()) for entry in folder.iterdir()) < 4_000_000


@pytest.mark.parametrize("domain", ["spirals", "", ".", "..", "../pretrained/moons", "moons/"])
def test_refuses_domains_that_do_not_ship(domain):
    """Names only, no paths."""
    with pytest.raises(ModelNotFound) as caught:
        pretrained(domain)
    assert "moons" in caught.value.hint

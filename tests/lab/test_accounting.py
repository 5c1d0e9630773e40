"""What a run spends is what opacus' own accountants say of the same steps."""

import sys
import warnings

import pytest

from ddib_fed.errors import ExtraMissing
from ddib_fed.lab.private import Ledger, noise_for, require_opacus

pytest.importorskip("opacus")


@pytest.mark.parametrize("mechanism", ["rdp", "prv"])
def test_the_figure_is_that_of_opacus(mechanism):
    from opacus.accountants import create_accountant

    noise = noise_for(mechanism, epsilon=3.0, delta=1e-4, rate=0.1, steps=50)
    ledger, own = Ledger(mechanism, 0.1, noise), create_accountant(mechanism)
    for _ in range(50):
        ledger.count()
        own.step(noise_multiplier=noise, sample_rate=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = own.get_epsilon(1e-4)
    assert ledger.epsilon(1e-4) == expected
    assert 2.9 < expected <= 3.0


def test_one_step_with_everybody_is_the_gaussian_mechanism():
    """Its epsilon is known in closed form (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    from math import erfc, exp, sqrt

    def delta_of(epsilon, sigma):
        below = [0.5 * erfc((epsilon * sigma + sign / (2 * sigma)) / sqrt(2)) for sign in (-1, 1)]
        return below[0] - exp(epsilon) * below[1]

    ledger = Ledger("prv", 1.0, 2.0)
    ledger.count()
    found = ledger.epsilon(1e-5)
    assert delta_of(found, 2.0) <= 1e-5 <= delta_of(found - 0.05, 2.0)


def test_without_the_extra_the_error_names_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ExtraMissing, match="differential privacy") as caught:
        require_opacus()
    assert caught.value.hint.endswith("-m pip install opacus, or leave --dp-epsilon out")

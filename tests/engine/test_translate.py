"""A translation is its legs: each of its own class and guidance, and every item has an outcome."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.engine.party import Failed, Item, Leg, ToDecode, ToEncode, translate
from ddib_fed.guidance import Guidance
from tests.runs.tiny_models import pictures, tiny

LEG = Leg(SolverSettings(evaluations=2, depth=0.5))


@pytest.fixture(scope="module")
def parties() -> list[LocalParty]:
    """Of three classes, and one for none."""
    return [
        open_party(tiny(name, seed=seed, num_classes=3, class_dropout=True), together=1)
        for seed, name in enumerate(("north", "south"))
    ]


def test_a_cycle_goes_to_the_target_class_and_comes_back_to_the_source_class(parties) -> None:
    """As its legs do one by one."""
    (source, target), x, leg = parties, pictures(1), replace(LEG, round_trip=True)
    (found,) = translate(source, target, [Item(0, x, 0, 2)], leg)
    latent = source.encode(ToEncode(0, x, 0), leg).latent
    there = target.decode(ToDecode(0, latent, 2), leg)
    back = source.decode(ToDecode(0, there.again.latent, 0), replace(leg, round_trip=False, returning=True))
    np.testing.assert_allclose(found.encoded.latent.data, latent.data, atol=1e-5)
    np.testing.assert_allclose(found.decoded.samples, there.samples, atol=1e-5)
    np.testing.assert_allclose(found.back.samples, back.samples, atol=1e-5)
    assert np.abs(target.decode(ToDecode(0, latent, 0), leg).samples - there.samples).max() > 0.01


def test_guidance_is_of_decoding_alone_unless_it_is_asked_of_encoding(parties) -> None:
    """A guided latent is no noise."""
    x = ToEncode(0, pictures(1), 1)
    plain, guided, both = (
        parties[0].encode(x, replace(LEG, guidance=guidance)).latent.data
        for guidance in (Guidance(), Guidance(scale=4.0), Guidance(scale=4.0, encoding=True))
    )
    assert np.array_equal(plain, guided)
    assert np.abs(plain - both).max() > 0.01


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_item_that_fails_is_told_wherever_it_stands(parties, bad: int) -> None:
    """Also behind the last that is translated: no result is silently missing."""
    items = [Item(n, pictures(1, size=3 if n == bad else 8, seed=n), 0, 1) for n in range(3)]
    outcomes = list(translate(*parties, items, LEG))
    assert sorted(each.number for each in outcomes if isinstance(each, Failed)) == [bad]
    assert sorted(each.item.number for each in outcomes if not isinstance(each, Failed)) == sorted(
        {0, 1, 2} - {bad}
    )

"""A model gets its class, or refuses; guidance is what the diffusion's own objects do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings, draw_samples
from ddib_fed.engine.local_party import open_party
from ddib_fed.engine.model import DomainModel, check_guidance, check_label
from ddib_fed.engine.record import Guidance
from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.models.units import Normalisation
from tests.engine.stages import translate_array
from tests.runs.tiny_models import pictures, tiny, tiny_classifier

FEW = SolverSettings("unipc", 3, 6)


@pytest.fixture(scope="module")
def classy():
    return tiny("classy", num_classes=3)


@pytest.fixture(scope="module")
def dropped():
    return tiny("dropped", num_classes=3, class_dropout=True)


def drawn(party, label=None, guidance=None, count=2):
    return draw_samples(party, count, ArraySettings(FEW, target_class=label, guidance=guidance or Guidance()))


@pytest.mark.slow
def test_a_class_changes_the_picture_and_one_can_be_given_to_each(classy):
    """One class for each picture gives what one class for all gives, row by row."""
    party = open_party(classy, together=2)
    each = drawn(party, [0, 2, 1], count=3)
    for row, label in enumerate((0, 2, 1)):
        assert np.allclose(each[row], drawn(party, label, count=3)[row], atol=1e-4)
    assert np.abs(drawn(party, 0, count=1) - drawn(party, 1, count=1)).max() > 0.01


def test_no_class_is_the_null_class_where_there_is_one(dropped):
    """A guidance of 0 towards any class follows it too; a guidance without a class would change nothing."""
    party = open_party(dropped)
    assert np.allclose(drawn(party), drawn(party, 1, Guidance(scale=0.0)), atol=1e-4)
    with pytest.raises(SettingsInvalid, match="none is given"):
        drawn(party, None, Guidance(scale=4.0))
    with pytest.raises(SettingsInvalid, match="none is given"):
        translate_array(pictures(2), party, party, ArraySettings(FEW, guidance=Guidance(scale=4.0)))


@pytest.mark.parametrize("network", [{}, {"num_classes": 3}], ids=["unconditional", "conditional"])
def test_a_classifier_guides_models_with_and_without_classes(network):
    """Decoding alone."""
    party, x = open_party(tiny(**network), classifier=tiny_classifier(3)), pictures(2)
    label = 1 if network else None
    asked = ArraySettings(FEW, source_class=label, target_class=label)
    unguided = translate_array(x, party, party, asked)
    guided = replace(asked, source_class=1, target_class=1, guidance=Guidance(classifier_scale=50.0))
    decoded = translate_array(x, party, party, guided)
    assert np.array_equal(unguided.latent, decoded.latent)
    assert np.abs(unguided.translated - decoded.translated).max() > 1e-3


def test_clipping_holds_predictions_as_the_public_code_does():
    """Encoding is left alone; what decoding predicts is held, step by step."""
    party, x = open_party(tiny()), pictures(2)
    free, held = (
        translate_array(x, party, party, ArraySettings(FEW, guidance=Guidance(clip=clip)))
        for clip in (False, True)
    )
    assert np.array_equal(free.latent, held.latent)
    assert np.abs(free.translated - held.translated).max() > 1e-3


def test_a_classifier_is_no_model_of_a_domain():
    with pytest.raises(BundleInvalid):
        DomainModel(tiny_classifier())


def test_classes_that_a_model_does_not_have_are_refused(classy):
    """Before anything is computed."""
    model = DomainModel(classy)
    for label in (3, [0, -1], []):
        with pytest.raises(SettingsInvalid, match="0 to 2"):
            check_label(model, label)
    with pytest.raises(SettingsInvalid, match="needs a class"):
        check_label(model, None)
    with pytest.raises(SettingsInvalid, match="no classes"):
        check_label(DomainModel(tiny()), 0)
    guided = DomainModel(tiny(), classifier=tiny_classifier(3))
    with pytest.raises(SettingsInvalid, match="needs a class"):
        check_label(guided, None, Guidance(classifier_scale=1.0))


def test_guidance_that_cannot_be_had_is_refused(classy):
    with pytest.raises(SettingsInvalid, match="class for none"):
        check_guidance(DomainModel(classy), Guidance(scale=2.0))
    for guidance in ({"scale": float("nan")}, {"classifier_scale": float("inf")}):
        with pytest.raises(SettingsInvalid, match="not a finite number"):
            Guidance(**guidance)
    with pytest.raises(SettingsInvalid, match="not both"):
        Guidance(scale=2.0, classifier_scale=1.0)
    with pytest.raises(SettingsInvalid, match="no classifier"):
        DomainModel(classy, classifier=classy)
    with pytest.raises(SettingsInvalid, match="num_classes differs"):
        DomainModel(classy, classifier=tiny_classifier(5))
    with pytest.raises(SettingsInvalid, match="cannot be clipped"):
        check_guidance(DomainModel(tiny(normalisation=Normalisation(mean=0.1))), Guidance(clip=True))

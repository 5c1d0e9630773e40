"""A model refuses the classes and the guidance that it does not have, before anything is computed."""

from __future__ import annotations

import pytest

from ddib_fed.engine.model import DomainModel, check_guidance, check_label
from ddib_fed.errors import SettingsInvalid
from ddib_fed.guidance import Guidance
from ddib_fed.models.units import Normalisation
from tests.runs.tiny_models import tiny, tiny_classifier


@pytest.fixture(scope="module")
def classy():
    return tiny("classy", num_classes=3)


def test_refuses_classes_that_are_not_there(classy):
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


def test_refuses_guidance_that_cannot_be_had(classy):
    with pytest.raises(SettingsInvalid, match="class for none"):
        check_guidance(DomainModel(classy), Guidance(scale=2.0))
    with pytest.raises(SettingsInvalid, match="not both"):
        Guidance(scale=2.0, classifier_scale=1.0)
    with pytest.raises(SettingsInvalid, match="no classifier"):
        DomainModel(classy, classifier=classy)
    with pytest.raises(SettingsInvalid, match="num_classes differs"):
        DomainModel(classy, classifier=tiny_classifier(5))
    with pytest.raises(SettingsInvalid, match="cannot be clipped"):
        check_guidance(DomainModel(tiny(normalisation=Normalisation(mean=0.1))), Guidance(clip=True))

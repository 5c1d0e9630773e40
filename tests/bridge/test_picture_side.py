"""A side is told its class, or refuses; guidance is what the diffusion's own objects do."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.bridge.bridging import Guidance, PictureSide, sample_pictures, translate_pictures
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import SettingsInvalid, ShapeMismatch
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.normalisation import Normalisation
from ddib_fed.runs.picture_recipe import Recipe
from tests.runs.tiny_models import pictures, tiny, tiny_classifier

FEW = SolverSettings("unipc", 3, 6)


@pytest.fixture(scope="module")
def classy():
    """Three classes, none for no class."""
    return tiny("classy", num_classes=3)


@pytest.fixture(scope="module")
def dropped():
    """Three classes, and one for none."""
    return tiny("dropped", num_classes=3, class_dropout=True)


@pytest.mark.slow
def test_a_class_changes_the_picture_and_one_can_be_given_to_each(classy):
    """One class for each picture gives what one class for all gives, row by row."""
    side = PictureSide(classy, label=0)
    each = sample_pictures(side.of_class([0, 2, 1]), 3, 0, FEW, batch=2)
    for row, label in enumerate((0, 2, 1)):
        alone = sample_pictures(side.of_class(label), 3, 0, FEW)
        assert np.allclose(each[row], alone[row], atol=1e-4)
    assert (
        np.abs(sample_pictures(side, 1, 0, FEW) - sample_pictures(side.of_class(1), 1, 0, FEW)).max() > 0.01
    )


def test_class_to_class_within_one_model(classy):
    """Source and target are the same network, told different classes."""
    side = PictureSide(classy, label=0)
    x = pictures(2)
    same = translate_pictures(x, side, side, FEW)
    other = translate_pictures(x, side, side.of_class(2), FEW)
    assert np.array_equal(same.latent, other.latent)
    assert np.abs(same.translated - other.translated).max() > 0.01


def test_no_class_is_the_null_class_where_there_is_one(dropped):
    """A guidance of 0 towards any class follows it too; a guidance without a class would change nothing."""
    plain = sample_pictures(PictureSide(dropped), 2, 0, FEW)
    unpressed = sample_pictures(PictureSide(dropped, label=1, guidance=Guidance(scale=0.0)), 2, 0, FEW)
    assert np.allclose(plain, unpressed, atol=1e-4)
    guided = PictureSide(dropped, guidance=Guidance(scale=4.0))
    with pytest.raises(SettingsInvalid, match="none is given"):
        sample_pictures(guided, 2, 0, FEW)
    with pytest.raises(SettingsInvalid, match="none is given"):
        translate_pictures(pictures(2), PictureSide(dropped), guided, FEW)


@pytest.mark.parametrize(
    "parts",
    [{"classifier_scale": 3.0}, {"encoding": True}, {"scale": float("nan")}, {"scale": float("inf")}],
)
def test_guidance_that_acts_on_nothing_cannot_be_made(parts):
    """Neither for one side nor for a recipe; a weight that is not given is 1 in requests, as in older runs."""
    with pytest.raises(SettingsInvalid):
        Guidance(**parts)
    named = {"scale": "guidance", "encoding": "guide_encoding"}
    with pytest.raises(SettingsInvalid):
        Recipe("a", "b", FEW, **{named.get(key, key): value for key, value in parts.items()})
    assert Recipe("a", "b", FEW).described()["classifier_scale"] == 1.0


def test_guidance_of_one_is_the_conditional_model_and_more_goes_beyond(dropped):
    plain, one, four = (
        sample_pictures(PictureSide(dropped, label=1, guidance=Guidance(scale=scale)), 2, 0, FEW)
        for scale in (None, 1.0, 4.0)
    )
    assert np.allclose(plain, one, atol=1e-4)
    assert np.abs(plain - four).max() > 0.01


@pytest.mark.parametrize("network", [{}, {"num_classes": 3}], ids=["unconditional", "conditional"])
def test_a_classifier_guides_models_with_and_without_classes(network):
    """Decoding alone, unless encoding is guided too."""
    bundle, classifier = tiny(**network), tiny_classifier(3)
    label = 1 if network else None
    x = pictures(2)
    plain = PictureSide(bundle, label=label)
    guided = PictureSide(bundle, label=1, guidance=Guidance(classifier=classifier, classifier_scale=50.0))
    both = PictureSide(
        bundle, label=1, guidance=Guidance(classifier=classifier, classifier_scale=50.0, encoding=True)
    )
    unguided, decoded, throughout = (translate_pictures(x, side, side, FEW) for side in (plain, guided, both))
    assert np.array_equal(unguided.latent, decoded.latent)
    assert np.abs(unguided.translated - decoded.translated).max() > 1e-3
    assert np.abs(unguided.latent - throughout.latent).max() > 1e-3


def test_refuses_classes_that_are_not_there(classy):
    with pytest.raises(SettingsInvalid, match="needs a class"):
        PictureSide(classy)
    with pytest.raises(SettingsInvalid, match="0 to 2"):
        PictureSide(classy, label=3)
    with pytest.raises(SettingsInvalid, match="0 to 2"):
        PictureSide(classy, label=0).of_class([0, -1])
    with pytest.raises(SettingsInvalid, match="no classes"):
        PictureSide(tiny(), label=0)


def test_refuses_guidance_that_cannot_be_had(classy, dropped):
    with pytest.raises(SettingsInvalid, match="class for none"):
        PictureSide(classy, label=0, guidance=Guidance(scale=2.0))
    with pytest.raises(SettingsInvalid, match="not both"):
        PictureSide(dropped, label=0, guidance=Guidance(scale=2.0, classifier=tiny_classifier(3)))
    with pytest.raises(SettingsInvalid, match="no classifier"):
        PictureSide(classy, label=0, guidance=Guidance(classifier=classy))
    with pytest.raises(SettingsInvalid, match="num_classes differs"):
        PictureSide(classy, label=0, guidance=Guidance(classifier=tiny_classifier(5)))
    with pytest.raises(SettingsInvalid, match="needs a class"):
        PictureSide(tiny(), guidance=Guidance(classifier=tiny_classifier(3)))
    with pytest.raises(SettingsInvalid, match="cannot be clipped"):
        PictureSide(tiny(normalisation=Normalisation(mean=0.1)), guidance=Guidance(clip=True))


def test_clipping_holds_predictions_as_the_public_code_does():
    """Encoding is left alone; what decoding predicts is held, step by step."""
    plain, clipped = PictureSide(tiny()), PictureSide(tiny(), guidance=Guidance(clip=True))
    x = pictures(2)
    free, held = translate_pictures(x, plain, plain, FEW), translate_pictures(x, clipped, clipped, FEW)
    assert np.array_equal(free.latent, held.latent)
    assert np.abs(free.translated - held.translated).max() > 1e-3


def test_refuses_models_that_make_no_pictures():
    with pytest.raises(ShapeMismatch):
        PictureSide(pretrained("moons"))
    with pytest.raises(ShapeMismatch):
        PictureSide(tiny_classifier())

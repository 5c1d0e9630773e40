"""Pictures cross the bridge alike in any batch, in the units of each model, for the class that was asked for."""

from dataclasses import replace

import numpy as np
import pytest

from ddib_fed.data.folder import expand
from ddib_fed.datasets import shipped_bytes
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings, draw_samples, item_of
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.engine.model import DomainModel, check_guidance
from ddib_fed.engine.party import Leg, ToEncode
from ddib_fed.errors import BundleInvalid, LatentNotGaussian, SettingsInvalid
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.units import Normalisation
from ddib_fed.record import Guidance
from tests.engine.stages import translate_array
from tests.runs.tiny_models import pictures, tiny, tiny_classifier

FEW = SolverSettings("unipc", 3, 6)


@pytest.fixture(scope="module")
def north():
    return open_party(tiny("north", seed=1, soften_sigma=0.02))


@pytest.fixture(scope="module")
def south():
    return open_party(tiny("south", seed=2, soften_sigma=0.1))


def in_twos(*parties):
    return [LocalParty(party.model, Batcher(party.model, rows=2, beside=False)) for party in parties]


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["brain-t1-volume", "brain-t2-volume"])
def test_latents_of_shipped_volumes_are_noise_wherever_the_block_lies(domain):
    """In the middle of a head it is brighter than all others, at its edge it is background; the gate lets both pass."""
    (test,) = shipped_bytes(domain, ["test"])
    party = open_party(pretrained(domain))
    for x in expand(test[[6, 10]]):
        item = item_of(0, x[None], party.model, party.model, ArraySettings(FEW))
        latent = party.encode(ToEncode(0, x[None], noise=item.noise), Leg(FEW)).latent
        assert abs(latent.data.mean()) < 0.05


@pytest.mark.slow
def test_batches_do_not_show(north, south):
    """Nor do neighbours: softening's noise belongs to the picture."""
    x = pictures(5)
    whole = translate_array(x, north, south, ArraySettings(FEW, cycle=True))
    parts = translate_array(x, *in_twos(north, south), ArraySettings(FEW, cycle=True))
    alone = translate_array(x[3:4], north, south, ArraySettings(FEW, cycle=True))
    for stage in ("latent", "translated", "latent_again", "back"):
        assert np.allclose(getattr(whole, stage), getattr(parts, stage), atol=1e-4), stage
        assert np.allclose(getattr(whole, stage)[3:4], getattr(alone, stage), atol=1e-4), stage


def test_the_source_softens_by_its_own_level_unless_told(north, south):
    """The models' manifests hold 0.02 and 0.1; on the way back nothing is softened."""
    x = pictures(1)
    own, same, other = (
        translate_array(x, north, south, ArraySettings(FEW, cycle=True, soften=sigma))
        for sigma in (None, 0.02, 0.05)
    )
    assert np.array_equal(own.latent, same.latent)
    assert np.abs(own.latent - other.latent).max() > 1e-3
    assert np.abs(own.latent_again - own.latent).mean() < 0.05


@pytest.mark.slow
def test_each_models_units_stay_inside():
    """Numbers for each channel, other colours: a model bridged to itself in other units moves as the plain one."""
    x = 0.5 * pictures(2, channels=3)
    # Lightness lies around 0.7: what the model is given must be centred, or its latent is no noise.
    scaled = Normalisation(mean=(0.7, -0.2, 0.0), std=(0.5, 0.25, 2.0), colours="opponent")
    plain = open_party(tiny(channels=3))
    moved = open_party(tiny(channels=3, normalisation=scaled))
    inner = translate_array(scaled.apply(x), plain, plain, ArraySettings(FEW, soften=0.0))
    outer = translate_array(x, moved, moved, ArraySettings(FEW, soften=0.0))
    assert np.allclose(inner.latent, outer.latent, atol=1e-5)


def test_a_picture_whose_latent_is_no_noise_is_refused_as_by_a_node(north, south):
    """A latent of less depth is never refused: it still holds some of the picture."""
    x = pictures(3)
    x[0] = 2.5
    with pytest.raises(LatentNotGaussian):
        translate_array(x, north, south, ArraySettings(FEW))
    shallow = ArraySettings(replace(FEW, depth=0.3), soften=0.0)
    assert len(translate_array(x[:1], north, south, shallow).latent) == 1


# Classes and guidance


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
    party = open_party(classy, together=2)
    each = drawn(party, [0, 2, 1], count=3)
    for row, label in enumerate((0, 2, 1)):
        assert np.allclose(each[row], drawn(party, label, count=3)[row], atol=1e-4)
    assert np.abs(drawn(party, 0, count=1) - drawn(party, 1, count=1)).max() > 0.01


def test_no_class_is_the_null_class_where_there_is_one(dropped):
    """A guidance of 0 towards any class follows it too; a guidance without a class would change nothing."""
    party = open_party(dropped)
    assert np.allclose(drawn(party), drawn(party, 1, Guidance(guidance=0.0)), atol=1e-4)
    with pytest.raises(SettingsInvalid, match="none is given"):
        drawn(party, None, Guidance(guidance=4.0))
    with pytest.raises(SettingsInvalid, match="none is given"):
        translate_array(pictures(2), party, party, ArraySettings(FEW, guidance=Guidance(guidance=4.0)))


@pytest.mark.parametrize("network", [{}, {"num_classes": 3}], ids=["unconditional", "conditional"])
def test_a_classifier_guides_models_with_and_without_classes(network):
    party, x = open_party(tiny(**network), classifier=tiny_classifier(3)), pictures(2)
    label = 1 if network else None
    asked = ArraySettings(FEW, source_class=label, target_class=label)
    unguided = translate_array(x, party, party, asked)
    guided = replace(asked, source_class=1, target_class=1, guidance=Guidance(classifier_scale=50.0))
    decoded = translate_array(x, party, party, guided)
    assert np.array_equal(unguided.latent, decoded.latent)
    assert np.abs(unguided.translated - decoded.translated).max() > 1e-3


def test_guidance_that_cannot_be_had_is_refused(classy):
    with pytest.raises(SettingsInvalid, match="class for none"):
        check_guidance(DomainModel(classy), Guidance(guidance=2.0))
    for guidance in ({"guidance": float("nan")}, {"classifier_scale": float("inf")}):
        with pytest.raises(SettingsInvalid, match="not a finite number"):
            Guidance(**guidance)
    with pytest.raises(SettingsInvalid, match="not both"):
        Guidance(guidance=2.0, classifier_scale=1.0)
    with pytest.raises(SettingsInvalid, match="no classifier"):
        DomainModel(classy, classifier=classy)
    with pytest.raises(SettingsInvalid, match="num_classes differs"):
        DomainModel(classy, classifier=tiny_classifier(5))
    with pytest.raises(BundleInvalid):
        DomainModel(tiny_classifier())
    with pytest.raises(SettingsInvalid, match="cannot be clipped"):
        check_guidance(DomainModel(tiny(normalisation=Normalisation(mean=0.1))), Guidance(clip=True))


# Records of translations: written, read, and refused

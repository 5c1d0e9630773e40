"""What a manifest says of pictures: optional fields, what is refused, digests that stay."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from ddib_fed.calibration.record import units_digest
from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.manifest import Manifest, check_guide
from ddib_fed.models.units import ChannelMap, Normalisation
from tests.models import examples
from tests.networks.picture_networks import TINY, TINY_CLASSIFIER, manifest


def test_colours_become_opponents_and_come_back():
    """Grey has lightness alone, each colour stays in [-1, 1]."""
    normal = Normalisation(mean=(0.1, 0.0, -0.1), std=(0.5, 0.25, 0.125), colours="opponent")
    raw = np.random.default_rng(0).uniform(-1, 1, (4, 3, 5, 7)).astype(np.float32)
    assert normal.apply(raw).dtype == np.float32
    assert np.allclose(normal.undo(normal.apply(raw)), raw, atol=1e-6)
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T[:, :, None, None]
    found = Normalisation(colours="opponent").apply(corners)[:, :, 0, 0]
    assert np.abs(found).max() <= 1.02
    greys = np.linspace(-1, 1, 5)[:, None, None, None].repeat(3, axis=1)
    assert np.allclose(Normalisation(colours="opponent").apply(greys)[:, 1:], 0.0, atol=1e-6)
    light = np.array([[-1.0, -0.5, 0.5]])[:, :, None, None]
    dark = (light + 1 + 0.04) / 2 - 1 - 0.04  # half as much of each, black's share included
    assert np.allclose(
        *(Normalisation(colours="opponent").apply(x)[:, 1:] for x in (light, np.maximum(dark, -1))), atol=0.05
    )


REFUSED = [
    (TINY, {"sample_shape": (1, 16, 15)}, "divide"),
    (TINY, {"role": "classifier"}, "role"),
    (TINY, {"normalisation": Normalisation(mean=(0.0, 1.0))}, "channels"),
    (TINY.model_copy(update={"patch": 4}), {"sample_shape": (1, 16, 20)}, "divide by 8"),
    (TINY_CLASSIFIER.model_copy(update={"pool": "attention"}), {"sample_shape": (1, 32, 32)}, "pooling"),
    (examples.SMALL, {"sample_shape": (2,), "sample_kind": "point"}, "picture format"),
    (examples.SMALL, {"sample_shape": (2,)}, "sample_shape"),
]


@pytest.mark.parametrize(("network", "changes", "word"), REFUSED, ids=str)
def test_what_does_not_fit_the_network_is_refused(network, changes, word):
    fields = {"role": "generator", **manifest().model_dump(), "network": network.model_dump()}
    fields["role"] = "classifier" if network.kind == "classifier" else "generator"
    fields |= {"normalisation": {}} | changes
    with pytest.raises(ValidationError, match=word):
        Manifest.model_validate(fields)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sample_shape": (1, 32, 32)}, "sample_shape"),
        ({"normalisation": Normalisation()}, "normalisation"),
        ({"time_input": "timestep", "schedule": {"name": "cosine"}}, "schedule"),
        ({"network": TINY_CLASSIFIER.model_copy(update={"out_channels": 4})}, "num_classes"),
        ({"classes": ("c", "b", "a")}, "classes"),
    ],
    ids=str,
)
def test_a_classifier_for_something_else_does_not_guide(changes, field):
    """The first field that differs is named."""
    generator = manifest(TINY.model_copy(update={"num_classes": 3}), classes=("a", "b", "c"))
    check_guide(generator, manifest(TINY_CLASSIFIER, classes=("a", "b", "c")))
    with pytest.raises(SettingsInvalid, match=field):
        check_guide(generator, manifest(**{"network": TINY_CLASSIFIER} | changes))


# Maps of channels: each is undone, and what cannot be undone is refused or goes to the nearest value


FLIP = ((-1.2, -1.5), (-0.6, -0.9), (-0.6, 2.0), (0.4, 1.0), (1.2, -0.4))
"""Background rises; above -0.6 the tissues fall."""
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
BENT = np.concatenate([[[0.2]] * 3, TURN, np.random.default_rng(4).normal(0, 0.05, (3, 6))], axis=1)


def rows(matrix):
    return tuple(map(tuple, np.asarray(matrix).tolist()))


@pytest.mark.parametrize(
    ("made", "atol"),
    [
        (ChannelMap(rotation=rows(TURN)), 1e-12),
        (ChannelMap(quadratic=rows(BENT)), 1e-4),
        (ChannelMap(quadratic=((0.3, -0.8, 0.05),)), 1e-4),
        (ChannelMap(curve=FLIP), 1e-12),
    ],
)
def test_a_map_is_undone(made, atol):
    """Whatever the number of dimensions after the channels."""
    for shape in ((5, made.channels), (2, made.channels, 6, 4)):
        u = np.random.default_rng(0).uniform(-1.1, 1.1, shape).astype(np.float32)
        v = made.apply(u)
        assert v.shape == u.shape
        assert v.dtype == np.float64
        assert np.allclose(made.undo(v), u, atol=atol)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotation": ((1.0,),), "curve": FLIP},
        {"quadratic": ((0.0,) * 6,) * 2},
        {"rotation": rows(2 * TURN)},
        {"quadratic": ((0.0, 101.0, 0.0),)},
        {"curve": ((1.0, 0.0), (0.0, 1.0))},
        {"curve": ((0.0, 0.0), (1.0, 1.0), (2.0, 0.5))},
        {"curve": ((0.0, 0.0), (1.0, 1.0), (1.0, 0.9), (2.0, 3.0))},
    ],
)
def test_what_is_no_map_is_refused(wrong):
    """Of no kind or two, of another shape, not orthogonal, too steep, or a curve that cannot be undone."""
    with pytest.raises(ValidationError):
        ChannelMap(**wrong)


def test_calibrated_units_map_after_mean_and_deviation_and_come_back():
    """A calibration is bound to the plain units."""
    plain = Normalisation(mean=0.1, std=0.5)
    made = plain.model_copy(update={"calibrated": ChannelMap(curve=FLIP)})
    raw = np.random.default_rng(1).uniform(-0.4, 0.6, (2, 1, 4, 4)).astype(np.float32)
    assert np.allclose(made.apply(raw), made.calibrated.apply(plain.apply(raw)), atol=1e-6)
    assert made.apply(raw).dtype == made.undo(raw).dtype == np.float32
    assert np.allclose(made.undo(made.apply(raw)), raw, atol=1e-6)
    assert made.plain == plain
    assert units_digest(made) == units_digest(plain)
    with pytest.raises(ValidationError, match="channels"):
        Normalisation(mean=(0.0,) * 3, calibrated=ChannelMap(curve=FLIP))


# Networks of other libraries, of whose arguments a manifest from elsewhere may say anything


STRIDED = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [8, 8]}


@pytest.mark.parametrize(
    ("target", "arguments", "word"),
    [
        ("monai.networks.nets.VQVAE", {"downsample_parameters": [[0, 4, 1, 1]] * 2}, "shrink sides"),
        ("monai.networks.nets.VQVAE", {"downsample_parameters": {"a": 1}}, "shrink sides"),
        ("monai.networks.nets.VQVAE", {"downsample_parameters": [{"a": 1}] * 2}, "shrink sides"),
        ("monai.networks.nets.VQVAE", {"num_res_layers": 10**9}, "num_res_layers is above 64"),
        ("diffusers.DiTTransformer2DModel", {"patch_size": 0}, "shrink sides"),
        ("monai.networks.nets.AutoencoderKL", {"spatial_dims": 3}, "281,474,976,710,656 numbers"),
    ],
)
def test_a_bundle_with_an_impossible_network_is_refused_by_its_field(target, arguments, word, tmp_path):
    network = {"kind": "library", "target": target, "arguments": STRIDED | arguments}
    volume = "spatial_dims" in arguments
    fields = {"name": "odd", "domain": "odd", "network": network, "role": "autoencoder"}
    fields |= {"sample_kind": "volume" if volume else "picture"}
    fields |= {"sample_shape": [1, *([65536] * 3 if volume else [16, 16])]}
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(BundleInvalid, match=word):
        load_bundle(tmp_path)

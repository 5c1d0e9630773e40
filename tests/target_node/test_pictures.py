"""What a target makes of the latents of pictures: PNGs of the model's size, and round trips that repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.serving import ServingParty
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import make_bundle
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.samples.images import decode_image
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contract import Contract, ContractLimits, PictureTerms
from ddib_fed.wire.version import SPOKEN
from target_node.service import DecodingServicer
from target_node.stream import DecodeStream, StreamSettings, Translated
from tests.node.institutions import Institution
from tests.node.picture_examples import SIZE, chunks, pictures_engine, pictures_model
from tests.node.tiny_nodes import make_config, make_context
from tests.wire.examples import picture_side

SIDE = {"sample_shape": (1, SIZE, SIZE), "picture": PictureTerms(0.0, 65535.0, 16), "classes": 2}
CONTRACT = Contract(
    max(SPOKEN),
    picture_side(**SIDE),
    picture_side(**{**SIDE, "institution": "south.example"}),
    ContractLimits(100, 1, 4 * SIZE * SIZE, 100),
)


@pytest.fixture(scope="module")
def engine():
    form = PictureFormat(high=65535.0, bits=16)
    made = pictures_engine("relief", seed=2, classes=("coast", "ridge"), form=form)
    yield made
    made.close()


def latents(count: int):
    generator = np.random.default_rng(5)
    for number in range(count):
        yield number, Latent.from_array(generator.standard_normal((1, 1, SIZE, SIZE), dtype=np.float32))


def decoded(engine, count: int, label: int = 1) -> list[Translated]:
    settings = StreamSettings(CONTRACT, SolverSettings(evaluations=8), round_trip=True, label=label)
    stream = DecodeStream(engine, settings, latents(count), Control(), lambda *_: None)
    return [event for event in stream.run() if isinstance(event, Translated)]


def test_each_latent_becomes_a_png_of_the_models_own_size(engine):
    """As deep as its manifest says, and nothing but pixels."""
    for item in decoded(engine, 2):
        assert item.media_type == common_pb2.MEDIA_TYPE_PNG
        assert set(chunks(item.file)) == {b"IHDR", b"IDAT", b"IEND"}
        picture = decode_image(item.file)
        assert (picture.pixels.shape, picture.bits) == ((SIZE, SIZE, 1), 16)


def test_a_round_trip_ends_at_the_latent_that_came_alone_or_beside_others(engine):
    """What was decoded is not softened, although the model's pictures are: the ODE goes back as it came."""
    assert engine.model.bundle.manifest.soften_sigma > 0
    (alone,), beside = decoded(engine, 1), decoded(engine, 4)
    tensors = [
        np.frombuffer(item.round_trip._payload, "<f4")
        for item in (alone, beside[0])  # type: ignore[union-attr]
    ]
    np.testing.assert_allclose(*tensors, atol=1e-4)
    came = next(latents(1))[1].data.ravel()
    assert np.abs(tensors[0] - came).mean() < 0.002


def test_the_class_decides_the_translation(engine):
    """Another one, another file."""
    assert decoded(engine, 1, label=0)[0].file != decoded(engine, 1, label=1)[0].file


def test_a_contract_of_pictures_allows_one_picture_an_item(tmp_path, engine):
    """Each has its own quota, result and record, whatever the limit for points is."""
    config = make_config(tmp_path, "south.example", "target", domain="relief")
    node = make_context(config, Institution("south.example", tmp_path / "state"), engine)
    limits = DecodingServicer(node).limits()
    assert (limits.max_samples_per_item, limits.max_latent_bytes) == (1, 4 * SIZE * SIZE)
    assert config.limits.max_points_per_item > 1


def test_a_round_trip_of_a_model_with_a_steady_answer_ends_where_it_began():
    """Solvers are exact for it: were the way back a little shorter, as that of a softened picture is, it would show."""
    manifest, weights = pictures_model("relief", seed=2, classes=("coast", "ridge"))
    last = [name for name in weights if name.startswith("out.") and name.endswith(".bias")][-1]
    weights[last] = torch.full_like(weights[last], 0.5)
    weights[last.replace("bias", "weight")] *= 0.0
    party = ServingParty(make_bundle(manifest, weights), device="cpu", threads=1)
    (item,) = decoded(party, 1)
    party.close()
    assert item.round_trip is not None
    came = next(latents(1))[1].data.ravel()
    np.testing.assert_allclose(np.frombuffer(item.round_trip._payload, "<f4"), came, atol=1e-3)

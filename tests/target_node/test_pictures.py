"""What a target makes of the latents of pictures: PNGs of the model's size, and round trips that repeat."""

import numpy as np
import pytest

from ddib_fed.data.pictures import decode_image
from ddib_fed.engine.party import Control
from ddib_fed.latent import Latent
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.protocol.contract import agree
from ddib_fed.v1 import common_pb2, decoding_pb2
from target_node.service import DecodingServicer
from target_node.stream import Arrived, DecodedFile, DecodeStream
from tests.data_modules.picture_examples import chunks
from tests.node.institutions import Institution
from tests.node.picture_examples import SIZE, pictures_engine
from tests.node.tiny_nodes import make_config, make_context
from tests.protocol.examples import PictureTerms, limits_of, offer, picture_side

SIDE = {
    "sample_shape": (1, SIZE, SIZE),
    "picture": PictureTerms(low=0.0, high=65535.0, bits=16),
    "classes": 2,
}
CONTRACT = agree(
    picture_side(**SIDE),
    picture_side(**{**SIDE, "institution": "south.example"}),
    limits_of(100, 1, 4 * SIZE * SIZE, 100),
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


def decoded(engine, count: int) -> list[DecodedFile]:
    header = decoding_pb2.DecodeHeader(solver=common_pb2.SolverSettings(evaluations=8), round_trip=True)
    together = iter([[Arrived(*each, label=1) for each in latents(count)]])
    stream = DecodeStream(engine, header, CONTRACT, together, Control(), len)
    return [event for event in stream.run() if isinstance(event, DecodedFile)]


def test_each_latent_becomes_a_png_of_the_models_own_size(engine):
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


def test_a_node_offers_the_guidance_that_its_model_and_its_policy_allow(tmp_path, engine):
    """Classifier-free where the model has a class for none; 0 in the policy switches it off."""
    south = Institution("south.example", tmp_path / "state")
    config = make_config(tmp_path, "south.example", "target", domain="relief")
    offering = make_context(config, south, engine)
    assert offering.guidance() == offer(0.0)
    dropped = pictures_engine("relief", seed=2, classes=("coast", "ridge"), class_dropout=True)
    offering.set_engine(dropped)
    assert offering.guidance() == offer(10.0)
    assert DecodingServicer(offering).limits().guidance == offer(10.0)
    strict = config.model_copy(update={"policy": config.policy.model_copy(update={"max_guidance": 0.0})})
    offering.config = strict
    assert offering.guidance() == offer(0.0)
    offering.audit.store.close()
    dropped.close()

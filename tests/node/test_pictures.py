"""Between a client's file and the model's array, and back: sizes, units, refusals; and the engine on pictures."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ddib_fed.data.fitting import Geometry, fit_picture, from_array
from ddib_fed.data.pictures import decode_image, encode_png
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.softening import Softener
from ddib_fed.errors import ImageTooLarge, ImageUnreadable, ShapeMismatch
from ddib_fed.evaluation.metrics import picture_rule
from ddib_fed.evaluation.samples import in_numbers, read_answer
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.node.model import rule_of_side
from ddib_fed.protocol.contract import PictureTerms
from tests.node.institutions import Institution
from tests.node.picture_examples import (
    SIZE,
    chunks,
    noise,
    pictures_engine,
    pictures_model,
)
from tests.node.tiny_nodes import encode, make_config, make_context
from tests.protocol.examples import picture_side

QUICK = SolverSettings(evaluations=8)
KEY = bytes(32)


def manifest(**options):
    return pictures_model("scans", **{"seed": 0, **options})[0]


def side(form: PictureFormat):
    """The rule of the other side's pictures."""
    return rule_of_side(
        picture_side(sample_shape=(1, SIZE, SIZE), picture=PictureTerms(form.low, form.high, form.bits))
    )


def sent_by(form: PictureFormat) -> bytes:
    return encode_png(from_array(grey()[0], picture_rule(manifest(form=form))))


def at_home(values, rule, fit: str, size: tuple[int, int]) -> bytes:
    return encode_png(from_array(values[0], in_numbers(replace(rule, fit=fit)), Geometry(*size)))


def read_picture(content: bytes, rule, limits):
    return fit_picture(decode_image(content, limits), rule)


def grey(seed: int = 0) -> np.ndarray:
    return noise(seed=seed)[None, None].astype(np.float32)


@pytest.mark.parametrize(
    "form",
    [
        PictureFormat(),
        PictureFormat(bits=16, high=65535.0),
        PictureFormat(low=-1000.0, high=2000.0, bits=16),
        PictureFormat(low=100.0, high=4000.0, bits=16),
        PictureFormat(low=0.0, high=1.0),
    ],
    ids=["8", "16", "CT", "MR", "unit"],
)
def test_a_translation_comes_home_as_exactly_as_its_file_has_bits(form):
    """Whatever the target's units are; at the model's own size the file is the very one that the target wrote."""
    sent, rule = sent_by(form), side(form)
    values = read_answer(sent, rule)
    assert at_home(values, rule, "resize", (SIZE, SIZE)) == sent
    levels = (form.high - form.low) / rule.output_scale[0]
    np.testing.assert_allclose(values, grey(), atol=1.01 / levels)


def test_what_a_peer_hides_in_its_file_does_not_come_home():
    """The client's file is written from pixels."""
    content = io.BytesIO()
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Comment", "hello")
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(content, "PNG", pnginfo=text)
    south = side(PictureFormat())
    home = at_home(read_answer(content.getvalue(), south), south, "resize", (SIZE, SIZE))
    assert set(chunks(home)) == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (encode_png(np.zeros((SIZE, SIZE + 1, 1), np.uint8)), ImageTooLarge),
        (encode_png(np.zeros((SIZE, SIZE - 1, 1), np.uint8)), ShapeMismatch),
        (encode_png(np.zeros((SIZE, SIZE, 3), np.uint8)), ShapeMismatch),
        (encode_png(np.zeros((SIZE, SIZE, 1), np.uint16)), ShapeMismatch),
        (b"\xff\xd8\xff\xe0", ImageUnreadable),
        (b"", ImageUnreadable),
    ],
    ids=["larger", "smaller", "colour", "deeper", "a JPEG", "nothing"],
)
def test_an_answer_that_was_not_agreed_is_refused(content, error):
    """Size, channels, bits, format."""
    with pytest.raises(error):
        read_answer(content, side(PictureFormat()))


# The engine


@pytest.fixture(scope="module")
def plain():
    made = pictures_engine()
    yield made
    made.close()


@pytest.fixture(scope="module")
def classes():
    made = pictures_engine("relief", seed=2, classes=("coast", "ridge"))
    yield made
    made.close()


def test_encoding_softens_with_the_noise_that_it_is_given(plain):
    """The same noise, the same latent; another peer's noise, another latent, as far off as the noise level says."""
    softener = Softener(KEY, plain.model.bundle.digest)

    def latent(peer: str) -> np.ndarray:
        noisy = encode(plain, grey(), QUICK, noise=lambda x: softener.for_picture(x, peer))
        return noisy.latent.data

    first = latent("south.example")
    np.testing.assert_allclose(first, latent("south.example"), atol=1e-5)
    gap = first - latent("west.example")
    assert gap.std() == pytest.approx(0.02 * 2**0.5, rel=0.3)


def test_a_node_says_of_itself_what_its_manifest_and_policy_say(tmp_path, classes):
    """The side of the contract: shape, softening, units, classes with their names, and the size rule."""
    config = make_config(tmp_path, "south.example", "target", domain="relief")
    node = make_context(config, Institution("south.example", tmp_path / "state"), classes)
    said = node.side()
    assert (said.sample_kind, said.sample_shape, said.soften_sigma) == ("picture", (1, SIZE, SIZE), 0.02)
    assert (said.classes, said.class_names) == (2, ("coast", "ridge"))
    assert (said.size_rule, said.picture) == ("resize", PictureTerms(0.0, 255.0, 8))
    node.config = config.model_copy(
        update={"policy": config.policy.model_copy(update={"size_rule": "refuse"})}
    )
    assert node.side() == replace(said, size_rule="refuse")

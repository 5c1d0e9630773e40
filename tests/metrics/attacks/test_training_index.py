"""The index of training pictures: what counts as a copy, from which distance on, and files that are refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ddib_fed.errors import InputError, ShapeMismatch
from ddib_fed.metrics.attacks.copies import reduced
from ddib_fed.metrics.attacks.training_index import (
    MAGIC,
    IndexFacts,
    TrainingIndex,
    index_file,
    parse_index,
    threshold_of,
)

SHAPE = (3, 32, 32)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Patches of colour, (N, 3, 32, 32) in [-1, 1]."""
    coarse = np.random.default_rng(seed).uniform(-0.9, 0.9, (count, 3, 4, 4)).astype(np.float32)
    return coarse.repeat(8, axis=2).repeat(8, axis=3)


def file_of(train: np.ndarray, **changes) -> bytes:
    own = reduced(train)
    fields = {
        "model_sha256": "ab" * 32, "sample_shape": SHAPE, "pictures": len(own), "numbers": own.shape[1],
        "threshold": 0.12, "held_out": 0, **changes,
    }  # fmt: skip
    return index_file(IndexFacts(**fields), own)


@pytest.fixture(scope="module")
def train() -> np.ndarray:
    return pictures(300)


@pytest.fixture(scope="module")
def index(train) -> TrainingIndex:
    return parse_index(file_of(train), "index")


def test_a_file_is_read_as_it_was_written(train, index) -> None:
    """Two bytes a number, and the facts in front."""
    content = file_of(train)
    assert (index.facts.pictures, index.facts.numbers, len(index.rows)) == (300, 768, 300)
    assert len(content) < 300 * 768 * 2 + 500
    assert index.sha256 != parse_index(file_of(train, threshold=0.2), "index").sha256


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x[..., ::-1],
        lambda x: x + 0.02 * np.random.default_rng(1).standard_normal(x.shape),
        lambda x: np.rint((x + 1) * 127.5) / 127.5 - 1,
    ],
    ids=["itself", "its mirror image", "with noise", "rounded to 8 bits"],
)
def test_a_training_picture_is_a_copy(train, index, change) -> None:
    """Also when something is done to it that keeps the picture."""
    for picture in train[:5]:
        assert index.copied(change(picture[None]).astype(np.float32)) is not None


@pytest.mark.parametrize(
    "change",
    [lambda x: pictures(1, seed=7), lambda x: 0 * x, lambda x: 0.5 * x, lambda x: x[:, :, ::-1]],
    ids=["another", "grey", "half the contrast", "upside down"],
)
def test_another_picture_is_none(train, index, change) -> None:
    """Nor is what has been changed more."""
    assert index.copied(np.ascontiguousarray(change(train[:1]))) is None


def test_one_copy_among_several_pictures_is_enough(train, index) -> None:
    """An item is given out whole or not at all."""
    assert index.copied(np.concatenate([pictures(3, seed=5), train[:1]])) == pytest.approx(0, abs=2e-3)


def test_pictures_of_another_shape_are_refused(index) -> None:
    """They are no output of the model."""
    with pytest.raises(ShapeMismatch):
        index.copied(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize("count", [50, 400, 4_000])
def test_the_threshold_is_half_of_what_one_in_1000_undercuts(count: int) -> None:
    """Of distances whose distribution is a power, also where there are fewer of them than 1,000."""
    draws = [np.random.default_rng(n).uniform(size=count) ** (1 / 8) for n in range(40)]
    assert np.median([threshold_of(each) for each in draws]) == pytest.approx(
        0.5 * 0.001 ** (1 / 8), rel=0.12
    )


def test_a_threshold_needs_held_out_pictures() -> None:
    """Fifty of them; a picture as far away as the mean picture is no copy."""
    with pytest.raises(InputError, match="49 held-out pictures are too few") as refused:
        threshold_of(np.ones(49))
    assert "--threshold" in refused.value.hint
    assert threshold_of(np.zeros(60)) == 0
    assert threshold_of(np.full(60, 3.0)) == 0.5


def test_a_damaged_file_is_refused_wherever_it_is_damaged() -> None:
    """By its own digest."""
    content = file_of(pictures(3))
    for place in (0, 30, 95, 120, len(content) // 2, len(content) - 1):
        torn = bytearray(content)
        torn[place] ^= 1
        with pytest.raises(InputError):
            parse_index(bytes(torn), "index")
    for cut in (0, 10, 89, 90, 200, len(content) - 1):
        with pytest.raises(InputError):
            parse_index(content[:cut], "index")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"threshold":0.12', b'"threshold":1.12', "threshold"),
        (b'"pictures":3', b'"pictures":4', "4 pictures"),
        (b'"numbers":768', b'"numbers":767', "numbers"),
        (b'"format_version":1', b'"format_version":2', "format_version"),
        (b'"held_out":0', b'"held_out":0,"more":1', "more"),
    ],
)
def test_what_a_file_says_is_checked_though_its_digest_is_right(old: bytes, new: bytes, said: str) -> None:
    """Whoever wrote it."""
    with pytest.raises(InputError, match=said):
        parse_index(signed(body_of(pictures(3)).replace(old, new, 1)), "index")


def test_numbers_that_are_not_finite_are_refused() -> None:
    """Nothing would be near to them."""
    with pytest.raises(InputError, match="not finite"):
        parse_index(signed(body_of(pictures(3))[:-2] + np.float16("nan").tobytes()), "index")


def body_of(train: np.ndarray) -> bytes:
    return file_of(train).partition(b"\n")[2]


def signed(body: bytes) -> bytes:
    """The file of a body, whatever it holds."""
    return MAGIC + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body

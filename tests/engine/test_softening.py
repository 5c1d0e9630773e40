"""The noise that softens pictures: the same for the same request, and nobody else's."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.engine.gate import KEY_BYTES, Softener, load_key, standard_normal
from ddib_fed.errors import ConfigError

MODEL = "ab" * 32
PINNED = [-0.07283834367990494, 0.33368682861328125, -0.505881667137146, -0.41130873560905457]
PICTURE = np.linspace(-2, 2, 3 * 8 * 8, dtype=np.float32).reshape(1, 3, 8, 8)


@pytest.fixture
def softener() -> Softener:
    return Softener(bytes(KEY_BYTES), MODEL)


def test_the_same_picture_peer_and_model_give_the_same_noise(softener):
    """Also in another process: nothing but the key and what is given counts."""
    first = softener.for_picture(PICTURE, "south.example")
    again = Softener(bytes(KEY_BYTES), MODEL).for_picture(PICTURE.copy(), "south.example")
    np.testing.assert_array_equal(first, again)
    assert (first.shape, first.dtype) == (PICTURE.shape, np.float32)


@pytest.mark.parametrize(
    ("key", "model", "picture", "peer"),
    [
        (b"\1" * KEY_BYTES, MODEL, PICTURE, "south.example"),
        (bytes(KEY_BYTES), "cd" * 32, PICTURE, "south.example"),
        (bytes(KEY_BYTES), MODEL, np.nextafter(PICTURE, np.float32(9)), "south.example"),
        (bytes(KEY_BYTES), MODEL, PICTURE, "west.example"),
    ],
    ids=["key", "model", "picture", "peer"],
)
def test_another_key_model_picture_or_peer_gives_unrelated_noise(softener, key, model, picture, peer):
    """Two peers that compare their latents of one picture cannot take the noise out."""
    ours = softener.for_picture(PICTURE, "south.example").ravel()
    theirs = Softener(key, model).for_picture(picture, peer).ravel()
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 0.3
    assert np.abs(ours - theirs).max() > 1


def test_the_noise_is_pinned():
    """A change of the recipe would give every picture a second latent: it is a change of the format."""
    n = standard_normal(b"ddib-fed", (4,))
    np.testing.assert_allclose(n, PINNED, rtol=1e-6)


def test_the_key_is_made_once_for_the_owner_alone(tmp_path):
    """32 bytes, mode 0600, and the same at the next start."""
    path = tmp_path / "softening.key"
    key = load_key(path)
    assert len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path) == key
    assert load_key(tmp_path / "other.key") != key


@pytest.mark.parametrize(("content", "mode"), [(b"short", 0o600), (bytes(32), 0o640)], ids=["torn", "open"])
def test_a_key_that_cannot_be_trusted_stops_the_start(tmp_path, content, mode):
    """Cut short, or readable by others."""
    path = tmp_path / "softening.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"softening\.key"):
        load_key(path)

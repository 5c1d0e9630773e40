"""Content credentials: C2PA's own reader finds them valid in PNG, and not after a change."""

import numpy as np
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from ddib_fed.client.credentials import MADE_BY_A_MODEL, Credentials, mark
from ddib_fed.data.pictures import decode_image, encode_png
from ddib_fed.errors import ConfigError, InputError
from tests.formats.echoes import record
from tests.formats.signers import read_mark, write_signer

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)
PNG = encode_png(PIXELS)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    return Credentials.load(*write_signer(tmp_path_factory.mktemp("signer")))


def test_a_png_says_that_a_model_made_it(credentials):
    """The statement names domains and models; the pixels are the same; nothing is beside them but the statement."""
    marked = mark(PNG, record(b"item", PNG), credentials)
    found = read_mark(marked)
    assert found["validation_state"] == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    actions, models = manifest["assertions"]
    assert actions["data"]["actions"][0]["digitalSourceType"] == MADE_BY_A_MODEL
    assert "north.example/scans to south.example/relief" in actions["data"]["actions"][0]["description"]
    assert models["data"]["target_model_sha256"] == "cd" * 32
    assert "thumbnail" not in manifest
    np.testing.assert_array_equal(decode_image(marked).pixels, PIXELS)
    assert read_mark(PNG) is None


def test_a_changed_picture_is_found_out(credentials):
    marked = bytearray(mark(PNG, record(b"item", PNG), credentials))
    marked[marked.index(b"IDAT") + 200] ^= 1
    found = read_mark(bytes(marked))
    assert found["validation_state"] == "Invalid"


def test_certificates_and_keys_that_cannot_sign_are_refused(tmp_path):
    """One for clients, a key that others may read, a file that is neither."""
    (tmp_path / "client").mkdir()
    for_clients = write_signer(tmp_path / "client", ExtendedKeyUsageOID.CLIENT_AUTH)
    with pytest.raises(InputError, match="refused"):
        mark(PNG, record(b"item", PNG), Credentials.load(*for_clients))
    chain, key = for_clients
    with pytest.raises(ConfigError, match="no certificate"):
        Credentials.load(key, key)
    key.chmod(0o644)
    with pytest.raises(ConfigError):
        Credentials.load(chain, key)

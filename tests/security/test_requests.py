"""A certificate's way from the issuer to another machine, in files."""

from __future__ import annotations

import base64
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ddib_fed.errors import FileMissing, InputError, PolicyDenied, Unauthenticated
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.pki import certificate_pem, install, make_request, read_request, sign_request
from tests.node.institutions import Institution

NODE_2 = Identity("north.example", "node", "node-2")


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


def signed(north: Institution, folder: Path, identity: Identity = NODE_2) -> bytes:
    return sign_request(north.authority, read_request(make_request(folder, identity)), (north.root,))


def test_a_second_node_is_enrolled_without_its_key_travelling(north: Institution, tmp_path: Path) -> None:
    """Request there, issue here, install there."""
    pem = signed(north, tmp_path / "two")
    assert b"PRIVATE" not in pem
    assert install(tmp_path / "two", pem, expected=NODE_2) == NODE_2
    assert pki.load_identity(tmp_path / "two").identity == NODE_2
    assert not (tmp_path / "two" / "request.key").exists()


def test_a_request_for_another_institution_is_not_signed(north: Institution, tmp_path: Path) -> None:
    """The root could not vouch for it anyway."""
    with pytest.raises(PolicyDenied, match=r"south\.example"):
        signed(north, tmp_path, Identity("south.example", "node", "node-1"))


def test_a_request_whose_signature_is_wrong_is_not_signed(tmp_path: Path) -> None:
    """Nobody gets a certificate for a key that they do not hold."""
    der = bytearray(
        x509.load_pem_x509_csr(make_request(tmp_path, NODE_2)).public_bytes(serialization.Encoding.DER)
    )
    der[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(PolicyDenied, match="signature"):
        read_request(pem)


def test_a_certificate_for_another_key_is_not_installed(north: Institution, tmp_path: Path) -> None:
    """What was signed for one folder is no use in another."""
    pem = signed(north, tmp_path / "two")
    make_request(tmp_path / "three", NODE_2)
    with pytest.raises(FileMissing, match="has no key for"):
        install(tmp_path / "three", pem)


def test_a_certificate_for_another_name_is_not_installed(north: Institution, tmp_path: Path) -> None:
    """node.toml says who the node is."""
    pem = signed(north, tmp_path / "two")
    with pytest.raises(Unauthenticated, match="node-2"):
        install(tmp_path / "two", pem, expected=Identity("north.example", "node", "node-9"))


def test_a_certificate_that_has_expired_is_not_installed(north: Institution, tmp_path: Path) -> None:
    """It was signed too long ago."""
    pem = signed(north, tmp_path / "two")
    expired = pki.load_identity(north.pki).not_after + timedelta(days=1)
    with pytest.raises(Unauthenticated, match="expired"):
        install(tmp_path / "two", pem, now=expired)


def test_a_certificate_without_its_root_is_not_installed(north: Institution, tmp_path: Path) -> None:
    """The first time the root must come along."""
    leaf = pki.parse_certificates(signed(north, tmp_path / "two"), "signed")[0]
    with pytest.raises(InputError, match="root is missing"):
        install(tmp_path / "two", certificate_pem(leaf))


def test_a_root_that_is_not_trusted_here_is_not_installed(north: Institution, tmp_path: Path) -> None:
    """Another root of the same name cannot take the institution over with a file."""
    impostor = Institution("north.example", tmp_path / "impostor")
    install(tmp_path / "two", signed(north, tmp_path / "two"))
    with pytest.raises(Unauthenticated, match="none of the roots that are trusted"):
        install(tmp_path / "two", signed(impostor, tmp_path / "two"))


@pytest.mark.parametrize(
    ("of", "by"),
    [
        (b"\x02\x01\x00\x30", b"\x02\x01\x0a\x30"),
        (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d03017f")),
    ],
    ids=["version", "curve"],
)
def test_a_request_that_is_damaged_is_no_unexpected_error(tmp_path: Path, of: bytes, by: bytes) -> None:
    """It comes from another machine by mail; an unknown version or curve is no ValueError."""
    request = x509.load_pem_x509_csr(make_request(tmp_path, NODE_2)).public_bytes(serialization.Encoding.DER)
    assert request.count(of) == 1
    body = base64.encodebytes(request.replace(of, by)).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(InputError, match="not a certificate request"):
        read_request(pem.encode())

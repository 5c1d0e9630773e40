"""What the issuer makes, and how it lies on the disk."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from ddib_fed.errors import AlreadyExists, FileMissing, InputError
from ddib_fed.security import pki
from ddib_fed.security.pki import certificate_pem, issue_leaf, new_key, parse_certificates
from tests.node.institutions import NOW, Institution


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


def leaf_of(folder: Path) -> x509.Certificate:
    return parse_certificates((folder / "leaf.pem").read_bytes(), "leaf")[0]


def test_the_root_is_limited_to_its_institution(north: Institution) -> None:
    """Critical name constraints on the URI's host and on DNS names, and no further CA below it."""
    constraints = north.root.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert set(constraints.value.permitted_subtrees or ()) == {
        x509.UniformResourceIdentifier("north.example"),
        x509.DNSName("north.example"),
    }
    assert north.root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


@pytest.mark.parametrize(
    ("kind", "life", "usages"),
    [
        ("node", timedelta(hours=24), {Usage.CLIENT_AUTH, Usage.SERVER_AUTH}),
        ("client", timedelta(days=30), {Usage.CLIENT_AUTH}),
    ],
)
def test_a_leaf_has_two_names_its_roles_usage_and_life(north: Institution, kind, life, usages) -> None:
    """One URI, one DNS name, no address; 24 hours for a node, 30 days for a client, who cannot serve."""
    leaf = issue_leaf(north.authority, kind, "x", public_key=new_key().public_key(), now=NOW)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [
        x509.UniformResourceIdentifier(f"spiffe://north.example/{kind}/x"),
        x509.DNSName("x.north.example"),
    ]
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
    assert leaf.not_valid_after_utc - NOW == life


def test_a_leaf_does_not_outlive_its_root(north: Institution) -> None:
    """Issued on the root's last day."""
    late = north.root.not_valid_after_utc - timedelta(hours=1)
    leaf = issue_leaf(north.authority, "client", "x", public_key=new_key().public_key(), now=late)
    assert leaf.not_valid_after_utc == north.root.not_valid_after_utc


def test_files_are_private(north: Institution) -> None:
    """Folders 0700, files 0600, certificates too."""
    assert north.pki.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in north.pki.iterdir()} == {0o600}
    assert {path.name for path in north.pki.iterdir()} == {
        "ca.pem",
        "ca.key",
        "leaf.pem",
        "leaf.key",
        "roots.pem",
    }


def test_openssl_agrees(north: Institution) -> None:
    """Another implementation accepts the chain for both purposes, and shows the same fingerprint."""
    for purpose in ("sslserver", "sslclient"):
        check = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", "leaf.pem"]
        assert "OK" in subprocess.run(check, cwd=north.pki, capture_output=True, text=True, check=True).stdout
    shown = subprocess.run(
        ["openssl", "x509", "-in", "ca.pem", "-noout", "-fingerprint", "-sha256"],
        cwd=north.pki,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert pki.same_fingerprint(shown.partition("=")[2], pki.fingerprint(north.root))


def test_openssl_refuses_a_name_outside_the_constraints(north: Institution) -> None:
    """What TLS does with a cross-minted name."""
    forger = pki.Authority("south.example", north.root, north.authority.key)
    leaf = issue_leaf(forger, "node", "node-1", public_key=new_key().public_key())
    (north.pki / "forged.pem").write_bytes(certificate_pem(leaf))
    check = ["openssl", "verify", "-CAfile", "ca.pem", "forged.pem"]
    done = subprocess.run(check, cwd=north.pki, capture_output=True, text=True, check=False)
    assert "permitted subtree violation" in done.stderr


def test_a_root_is_never_overwritten(north: Institution) -> None:
    """A second init changes nothing."""
    before = {path: path.read_bytes() for path in north.pki.iterdir()}
    with pytest.raises(AlreadyExists):
        pki.create_institution(north.pki, "north.example")
    assert {path: path.read_bytes() for path in north.pki.iterdir()} == before


def test_secrets_are_not_in_a_repr(north: Institution) -> None:
    """They would end in a log."""
    assert "PRIVATE" not in repr(pki.load_identity(north.pki))
    assert "key" not in repr(pki.load_authority(north.pki))


def test_a_client_gets_its_own_folder(north: Institution, tmp_path: Path) -> None:
    """With its key, its certificate and the institution's roots, but not the root's key."""
    made = pki.issue_client(north.pki, tmp_path / "alice", "alice")
    assert made.identity.uri == "spiffe://north.example/client/alice"
    assert {path.name for path in (tmp_path / "alice").iterdir()} == {"leaf.pem", "leaf.key", "roots.pem"}


def test_only_the_issuer_issues(north: Institution, tmp_path: Path) -> None:
    """A folder without the root's key says where to go."""
    (north.pki / "ca.key").unlink()
    assert not pki.has_authority(north.pki)
    with pytest.raises(FileMissing) as refused:
        pki.issue_client(north.pki, tmp_path / "alice", "alice")
    assert "ca.key" in refused.value.hint


def test_a_key_of_another_certificate_is_noticed(north: Institution, tmp_path: Path) -> None:
    """Both of the root and of the leaf."""
    other = Institution("south.example", tmp_path / "south")
    for name in ("ca.key", "leaf.key"):
        (north.pki / name).write_bytes((other.pki / name).read_bytes())
    with pytest.raises(InputError, match="not the key of leaf"):
        pki.load_identity(north.pki)
    with pytest.raises(InputError, match="not the key of ca"):
        pki.load_authority(north.pki)


@pytest.mark.parametrize(
    "broken", [b"", b"no pem", b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_key_that_cannot_be_read_is_named(north: Institution, broken: bytes) -> None:
    """By its file."""
    (north.pki / "leaf.key").write_bytes(broken)
    with pytest.raises(InputError, match=r"leaf\.key"):
        pki.load_identity(north.pki)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_a_crash_while_a_certificate_is_exchanged_leaves_a_pair(
    north: Institution, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the four files was the last to be written, certificate and key still belong together."""
    done = []
    real = pki.write_file

    def write(path: Path, data: bytes, *, private: bool, overwrite: bool = True) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        real(path, data, private=private, overwrite=overwrite)
        done.append(path.name)

    before = leaf_of(north.pki)
    with monkeypatch.context() as patched:
        patched.setattr(pki, "write_file", write)
        key = new_key()
        new = issue_leaf(north.authority, "node", "node-1", public_key=key.public_key())
        if writes == 4:
            pki.write_identity(north.pki, certificate=new, key=key, roots=(north.root,))
        else:
            with pytest.raises(KeyboardInterrupt):
                pki.write_identity(north.pki, certificate=new, key=key, roots=(north.root,))
    own = pki.load_identity(north.pki)
    assert own.cert_chain_pem == certificate_pem(new if writes >= 3 else before)


def test_a_renewal_leaves_one_key(north: Institution) -> None:
    """The old key does not stay in the file."""
    old = (north.pki / "leaf.key").read_bytes()
    pki.issue_to_folder(north.authority, north.pki, "node", "node-1")
    new = (north.pki / "leaf.key").read_bytes()
    assert new.count(b"BEGIN PRIVATE KEY") == 1
    assert old != new


@pytest.mark.parametrize("typed", ["sha256:AB:CD", "abcd", "AB CD", " SHA256:ab:cd\n"])
def test_a_fingerprint_may_be_typed_loosely(typed: str) -> None:
    """Case, colons, spaces and prefix do not count; digits do."""
    assert pki.same_fingerprint(typed, "SHA256:ab:cd")
    assert not pki.same_fingerprint(typed, "SHA256:ab:ce")
    assert not pki.same_fingerprint("", "SHA256:ab:cd")

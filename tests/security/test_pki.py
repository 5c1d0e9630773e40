"""What the issuer makes, what the verifier accepts, a certificate's way in files, and keys that others could read."""

import base64
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from ddib_fed import files as private_files
from ddib_fed.engine.gate import load_key
from ddib_fed.errors import ConfigError, FileMissing, InputError, PolicyDenied, Unauthenticated
from ddib_fed.files import read_private
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity, Pins, check_root, name_constraints, verify_peer_certificate
from ddib_fed.security.tls import ServerCredentials
from tests.node.institutions import HOUR, NOW, Institution, forge, names


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


def leaf_of(folder: Path) -> x509.Certificate:
    return pki.parse_certificates((folder / "leaf.pem").read_bytes(), "leaf")[0]


@pytest.mark.parametrize(
    ("kind", "life", "usages"),
    [
        ("node", timedelta(hours=24), {Usage.CLIENT_AUTH, Usage.SERVER_AUTH}),
        ("client", timedelta(days=30), {Usage.CLIENT_AUTH}),
    ],
)
def test_a_leaf_has_two_names_its_roles_usage_and_life(north: Institution, kind, life, usages) -> None:
    """One URI, one DNS name, no address; 24 hours for a node, 30 days for a client, who cannot serve."""
    leaf = pki.issue_leaf(north.authority, kind, "x", public_key=pki.new_key().public_key(), now=NOW)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [
        x509.UniformResourceIdentifier(f"spiffe://north.example/{kind}/x"),
        x509.DNSName("x.north.example"),
    ]
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
    assert leaf.not_valid_after_utc - NOW == life


def test_a_leaf_does_not_outlive_its_root(north: Institution) -> None:
    late = north.root.not_valid_after_utc - timedelta(hours=1)
    leaf = pki.issue_leaf(north.authority, "client", "x", public_key=pki.new_key().public_key(), now=late)
    assert leaf.not_valid_after_utc == north.root.not_valid_after_utc


def test_openssl_agrees(north: Institution) -> None:
    """Another implementation accepts the chain for both purposes, and shows the same fingerprint."""
    for purpose in ("sslserver", "sslclient"):
        check = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", "leaf.pem"]
        assert "OK" in subprocess.run(check, cwd=north.pki, capture_output=True, text=True, check=True).stdout
    show = ["openssl", "x509", "-in", "ca.pem", "-noout", "-fingerprint", "-sha256"]
    shown = subprocess.run(show, cwd=north.pki, capture_output=True, text=True, check=True).stdout
    assert pki.same_fingerprint(shown.partition("=")[2], pki.fingerprint(north.root))


def test_a_key_of_another_certificate_is_noticed(north: Institution, tmp_path: Path) -> None:
    other = Institution("south.example", tmp_path / "south")
    for name in ("ca.key", "leaf.key"):
        (north.pki / name).write_bytes((other.pki / name).read_bytes())
    with pytest.raises(InputError, match="not the key of leaf"):
        pki.load_identity(north.pki)
    with pytest.raises(InputError, match="not the key of ca"):
        pki.load_authority(north.pki)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_a_crash_while_a_certificate_is_exchanged_leaves_a_pair(north, writes, monkeypatch):
    """Whichever of the four files was the last to be written, certificate and key still belong together."""
    done = []
    real = pki.write_file

    def write(path: Path, data: bytes, **options: bool) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        real(path, data, **options)
        done.append(path.name)

    before = leaf_of(north.pki)
    monkeypatch.setattr(pki, "write_file", write)
    key = pki.new_key()
    new = pki.issue_leaf(north.authority, "node", "node-1", public_key=key.public_key())
    with suppress(KeyboardInterrupt):
        pki.write_identity(north.pki, certificate=new, key=key, roots=(north.root,))
    assert len(done) == writes
    own = pki.load_identity(north.pki)
    assert own.cert_chain_pem == pki.certificate_pem(new if writes >= 3 else before)
    if writes == 4:  # the old key does not stay in the file
        assert (north.pki / "leaf.key").read_bytes().count(b"BEGIN PRIVATE KEY") == 1


TWO = Identity("north.example", "node", "node-2")


def signed(north: Institution, folder: Path, identity: Identity = TWO) -> bytes:
    return pki.sign_request(
        north.authority, *pki.read_request(pki.make_request(folder, identity)), (north.root,)
    )


def test_a_second_node_is_enrolled_without_its_key_travelling(north: Institution, tmp_path: Path) -> None:
    pem = signed(north, tmp_path / "two")
    assert b"PRIVATE" not in pem
    leaf = pki.parse_certificates(pem, "signed")[0]
    with pytest.raises(InputError, match="root is missing"):  # the first time the root must come along
        pki.install(tmp_path / "two", pki.certificate_pem(leaf))
    assert pki.install(tmp_path / "two", pem, expected=TWO) == TWO
    assert pki.load_identity(tmp_path / "two").identity == TWO
    assert not (tmp_path / "two" / "request.key").exists()


def test_a_request_for_another_institution_is_not_signed(north: Institution, tmp_path: Path) -> None:
    with pytest.raises(PolicyDenied, match=r"south\.example"):
        signed(north, tmp_path, Identity("south.example", "node", "node-1"))


def test_a_request_whose_signature_is_wrong_is_not_signed(tmp_path: Path) -> None:
    der = bytearray(
        x509.load_pem_x509_csr(pki.make_request(tmp_path, TWO)).public_bytes(serialization.Encoding.DER)
    )
    der[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(PolicyDenied, match="signature"):
        pki.read_request(pem)


def test_a_root_that_is_not_trusted_here_is_not_installed(north: Institution, tmp_path: Path) -> None:
    """Another root of the same name cannot take the institution over with a file."""
    impostor = Institution("north.example", tmp_path / "impostor")
    pki.install(tmp_path / "two", signed(north, tmp_path / "two"))
    with pytest.raises(Unauthenticated, match="none of the roots that are trusted"):
        pki.install(tmp_path / "two", signed(impostor, tmp_path / "two"))


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
    request = x509.load_pem_x509_csr(pki.make_request(tmp_path, TWO)).public_bytes(serialization.Encoding.DER)
    assert request.count(of) == 1
    body = base64.encodebytes(request.replace(of, by)).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(InputError, match="not a certificate request"):
        pki.read_request(pem.encode())


@pytest.fixture
def keyed(tmp_path: Path) -> Institution:
    made = Institution("north.example", tmp_path / "no r'th")  # a name that a shell must be given in quotes
    load_key(made.pki / "softening.key")
    pki.make_request(made.pki, TWO)
    return made


READERS: dict[str, Callable[[Institution], object]] = {
    "ca.key": lambda north: pki.load_authority(north.pki),
    "leaf.key": lambda north: pki.load_identity(north.pki),
    "request.key": lambda north: pki.make_request(north.pki, TWO),
    "softening.key": lambda north: load_key(north.pki / "softening.key"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_key_that_others_can_read_is_refused_with_the_command_that_closes_it(keyed, name):
    """Its group is others too. The command can be pasted: after it the key is used."""
    key, use = keyed.pki / name, READERS[name]
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640") as refused:
        use(keyed)
    assert str(key) in refused.value.detail
    subprocess.run(["/bin/sh", "-c", refused.value.hint], check=True)
    assert key.stat().st_mode & 0o777 == 0o600
    use(keyed)


def test_a_folder_in_which_others_can_exchange_keys_is_refused(keyed: Institution) -> None:
    """They need not read one to put theirs there; the command can be pasted."""
    keyed.pki.chmod(0o722)
    with pytest.raises(ConfigError, match="mode 0722") as refused:
        pki.load_identity(keyed.pki)
    subprocess.run(["/bin/sh", "-c", refused.value.hint], check=True)
    assert pki.load_identity(keyed.pki).identity == keyed.identity


def test_somebody_elses_key_is_refused(keyed: Institution, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can exchange it, whatever its mode. Root's are taken: root can anyway."""
    key = keyed.pki / "leaf.key"
    if os.geteuid() == 0:
        os.chown(key, 12345, -1)
    else:
        monkeypatch.setattr(private_files.os, "geteuid", lambda: key.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to the user") as refused:
        read_private(key)
    assert "chown" in refused.value.hint


def test_a_running_node_goes_on_with_the_last_good_key_and_says_so(keyed: Institution) -> None:
    """A backup that was put back with other modes: in the status, with the command."""
    credentials = ServerCredentials(keyed.pki, keyed.store)
    assert credentials.problem is None
    (keyed.pki / "leaf.key").chmod(0o644)
    assert "chmod 600" in (credentials.problem or "")
    (keyed.pki / "leaf.key").chmod(0o600)
    assert credentials.problem is None


def test_a_certificate_for_another_key_is_not_installed(north: Institution, tmp_path: Path) -> None:
    pem = signed(north, tmp_path / "two")
    pki.make_request(tmp_path / "three", TWO)
    with pytest.raises(FileMissing, match="has no key for"):
        pki.install(tmp_path / "three", pem)


NORTH = pki.new_authority("north.example", now=NOW - HOUR)
SOUTH = pki.new_authority("south.example", now=NOW - HOUR)
PINS: Pins = {"north.example": (NORTH.certificate,), "south.example": (SOUTH.certificate,)}
HERS = names("north.example")
STRANGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


def verify(pem: bytes, root: x509.Certificate | None = None) -> Identity:
    """With another root pinned for north, if one is given."""
    pins = PINS if root is None else {**PINS, "north.example": (root,)}
    return verify_peer_certificate(pem, pins=pins, now=NOW)


def unconstrained(*, ca: bool = True, constraints: x509.NameConstraints | None = None) -> pki.Authority:
    """A root of north that `ddib pki init` did not make."""
    key = pki.new_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Corporate CA")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW - HOUR).not_valid_after(NOW + HOUR)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    return pki.Authority("north.example", builder.sign(key, hashes.SHA256()), key)


def under(root: pki.Authority) -> bytes:
    return forge(root, HERS)


@pytest.mark.parametrize("kind", ["node", "client"])
def test_a_leaf_of_the_pinned_root_proves_its_identity(kind) -> None:
    """What the issuer makes is what the verifier accepts, also while two roots are pinned."""
    leaf = pki.certificate_pem(
        pki.issue_leaf(NORTH, kind, "x-1", public_key=pki.new_key().public_key(), now=NOW)
    )
    assert verify(leaf) == Identity("north.example", kind, "x-1")
    both = (pki.new_authority("north.example", now=NOW - HOUR).certificate, NORTH.certificate)
    assert verify_peer_certificate(leaf, pins={"north.example": both}, now=NOW).name == "x-1"
    assert verify(forge(NORTH, HERS, extra=[(STRANGE, False)]))


@pytest.mark.parametrize(
    "uri",
    [
        "https://north.example/node/node-1", "spiffe://NORTH.example/node/node-1",
        "spiffe://north.example/admin/node-1", "spiffe://north.example/node/node-1?x=1",
        "spiffe://north.example/node/%6eode", "spiffe://127.0.0.1/node/node-1",
        "spiffe://north.example/node/" + "a" * 64, "spiffe://north.example/node/x\n", "",
    ],
)  # fmt: skip
def test_a_uri_of_another_form_is_no_identity(uri: str) -> None:
    with pytest.raises(InputError):
        Identity.parse(uri)


OLD = pki.new_authority("north.example", now=NOW - timedelta(days=4000))
NO_CA = unconstrained(ca=False)
EXCLUDED = unconstrained(constraints=x509.NameConstraints(None, [x509.DNSName("node-1.north.example")]))
ADDRESS = ip_address("127.0.0.1")
SHORT = rsa.generate_private_key(65537, 1024)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "minted by south": (lambda: under(SOUTH), "not issued by the pinned root of north"),
    "signed by another key": (lambda: forge(NORTH, HERS, signer=pki.new_key()), "signature"),
    "no names": (lambda: forge(NORTH, []), "no readable subject alternative names"),
    "two URIs": (lambda: forge(NORTH, [*HERS, *names("north.example", "node-2")]), "one URI"),
    "no DNS name": (lambda: forge(NORTH, HERS[:1]), "DNS name node-1.north.example"),
    "another DNS name": (lambda: forge(NORTH, [HERS[0], x509.DNSName("a.example")]), "and no other"),
    "an address": (lambda: forge(NORTH, [*HERS, x509.IPAddress(ADDRESS)]), "and no other"),
    "expired at this second": (lambda: forge(NORTH, HERS, end=NOW), "expired"),
    "from the future": (lambda: forge(NORTH, HERS, start=NOW + timedelta(seconds=1)), "not valid before"),
    "no purpose": (lambda: forge(NORTH, HERS, usages=()), "does not state its purpose"),
    "for servers alone": (lambda: forge(NORTH, HERS, usages=(Usage.SERVER_AUTH,)), "not for clientAuth"),
    "a client's for servers": (lambda: forge(NORTH, names("north.example", "x", "client")), "serverAuth"),
    "a CA": (lambda: forge(NORTH, HERS, ca=True), "is a CA's"),
    "an unknown critical extension": (lambda: forge(NORTH, HERS, extra=[(STRANGE, True)]), r"1\.2\.3\.4"),
    "a short RSA key": (lambda: forge(NORTH, HERS, subject_key=SHORT.public_key()), "neither P-256"),
    "garbage": (lambda: forge(NORTH, HERS).replace(b"MII", b"AAA", 1), "cannot be parsed"),
    "huge": (lambda: b"x" * 20_000, "larger than"),
    "a chain": (lambda: under(NORTH) * 2, "one certificate is expected"),
}
ROOTS = {
    "an expired root": (OLD, r"the root of north\.example expired"),
    "a root that is no CA": (NO_CA, "no CA certificate"),
    "south's root, pinned for north": (SOUTH, "name constraints"),
    "an excluded name": (EXCLUDED, "name constraints"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_every_other_certificate_is_refused(make: Callable[[], bytes], says: str) -> None:
    with pytest.raises(Unauthenticated, match=says):
        verify(make())


@pytest.mark.parametrize(("root", "says"), ROOTS.values(), ids=ROOTS)
def test_what_a_root_may_not_sign_is_refused(root: pki.Authority, says: str) -> None:
    with pytest.raises(Unauthenticated, match=says):
        verify(under(root), root.certificate)


@pytest.mark.parametrize(
    ("tree", "within", "beside"),
    [
        (x509.UniformResourceIdentifier("north.example"), "north.example", "lab.north.example"),
        (x509.UniformResourceIdentifier(".north.example"), "lab.north.example", "north.example"),
        (x509.DNSName("north.example"), "lab.north.example", "evilnorth.example"),
    ],
)
def test_name_constraints_are_those_of_rfc_5280(tree: x509.GeneralName, within: str, beside: str) -> None:
    """A URI's is one host exactly, or with a dot only those below; a DNS name's is by whole labels."""
    root = unconstrained(constraints=x509.NameConstraints([tree], None)).certificate
    check_root(root, within)
    with pytest.raises(Unauthenticated, match="name constraints"):
        check_root(root, beside)


def test_a_root_without_constraints_vouches_for_its_own_institution_only() -> None:
    root = unconstrained()
    assert not name_constraints(root.certificate)
    assert verify(under(root), root.certificate).institution == "north.example"
    with pytest.raises(Unauthenticated):
        verify(forge(root, names("south.example")), root.certificate)

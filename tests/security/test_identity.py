"""Who a certificate proves to be, and each way in which one is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from ddib_fed.errors import InputError, Unauthenticated
from ddib_fed.security.identity import (
    Identity,
    Pins,
    check_root,
    name_constraints,
    verify_peer_certificate,
)
from ddib_fed.security.pki import Authority, certificate_pem, issue_leaf, new_authority, new_key
from tests.node.institutions import HOUR, NOW, forge, names

NORTH = new_authority("north.example", now=NOW - HOUR)
SOUTH = new_authority("south.example", now=NOW - HOUR)
PINS: Pins = {"north.example": (NORTH.certificate,), "south.example": (SOUTH.certificate,)}
HERS = names("north.example")
STRANGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


def verify(pem: bytes, root: x509.Certificate | None = None) -> Identity:
    """With another root pinned for north, if one is given."""
    pins = PINS if root is None else {**PINS, "north.example": (root,)}
    return verify_peer_certificate(pem, pins=pins, now=NOW)


def unconstrained(*, ca: bool = True, constraints: x509.NameConstraints | None = None) -> Authority:
    """A root of north that `ddib pki init` did not make."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Corporate CA")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW - HOUR).not_valid_after(NOW + HOUR)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    return Authority("north.example", builder.sign(key, hashes.SHA256()), key)


def under(root: Authority) -> bytes:
    return forge(root, HERS)


@pytest.mark.parametrize("kind", ["node", "client"])
def test_a_leaf_of_the_pinned_root_proves_its_identity(kind) -> None:
    """What the issuer makes is what the verifier accepts, also while two roots are pinned."""
    leaf = certificate_pem(issue_leaf(NORTH, kind, "x-1", public_key=new_key().public_key(), now=NOW))
    assert verify(leaf) == Identity("north.example", kind, "x-1")
    both = (new_authority("north.example", now=NOW - HOUR).certificate, NORTH.certificate)
    assert verify_peer_certificate(leaf, pins={"north.example": both}, now=NOW).name == "x-1"
    assert verify(forge(NORTH, HERS, extra=[(STRANGE, False)]))


@pytest.mark.parametrize(
    "uri",
    [
        "https://north.example/node/node-1",
        "spiffe://NORTH.example/node/node-1",
        "spiffe://north.example/admin/node-1",
        "spiffe://north.example/node/node-1?x=1",
        "spiffe://north.example/node/%6eode",
        "spiffe://127.0.0.1/node/node-1",
        "spiffe://north.example/node/" + "a" * 64,
        "spiffe://north.example/node/x\n",
        "",
    ],
)
def test_a_uri_of_another_form_is_no_identity(uri: str) -> None:
    """One spelling for each identity."""
    with pytest.raises(InputError):
        Identity.parse(uri)


OLD = new_authority("north.example", now=NOW - timedelta(days=4000))
NO_CA = unconstrained(ca=False)
EXCLUDED = unconstrained(constraints=x509.NameConstraints(None, [x509.DNSName("node-1.north.example")]))
HERS_CUT = forge(NORTH, HERS).replace(b"MII", b"AAA", 1)
REFUSED: dict[str, tuple[Callable[[], bytes], x509.Certificate | None, str]] = {
    "minted by south": (lambda: under(SOUTH), None, "not issued by the pinned root of north"),
    "signed by another key": (lambda: forge(NORTH, HERS, signer=new_key()), None, "signature"),
    "no names": (lambda: forge(NORTH, []), None, "no readable subject alternative names"),
    "two URIs": (lambda: forge(NORTH, [*HERS, *names("north.example", "node-2")]), None, "one URI"),
    "no DNS name": (lambda: forge(NORTH, HERS[:1]), None, "DNS name node-1.north.example"),
    "another DNS name": (lambda: forge(NORTH, [HERS[0], x509.DNSName("a.example")]), None, "and no other"),
    "an address": (
        lambda: forge(NORTH, [*HERS, x509.IPAddress(ip_address("127.0.0.1"))]),
        None,
        "and no other",
    ),
    "expired at this second": (lambda: forge(NORTH, HERS, end=NOW), None, "expired"),
    "from the future": (
        lambda: forge(NORTH, HERS, start=NOW + timedelta(seconds=1)),
        None,
        "not valid before",
    ),
    "an expired root": (lambda: under(OLD), OLD.certificate, r"the root of north\.example expired"),
    "a root that is no CA": (lambda: under(NO_CA), NO_CA.certificate, "no CA certificate"),
    "south's root, pinned for north": (lambda: under(SOUTH), SOUTH.certificate, "name constraints"),
    "an excluded name": (lambda: under(EXCLUDED), EXCLUDED.certificate, "name constraints"),
    "no purpose": (lambda: forge(NORTH, HERS, usages=()), None, "does not state its purpose"),
    "for servers alone": (
        lambda: forge(NORTH, HERS, usages=(Usage.SERVER_AUTH,)),
        None,
        "not for clientAuth",
    ),
    "a client's for servers": (
        lambda: forge(NORTH, names("north.example", "x", "client")),
        None,
        "serverAuth",
    ),
    "a CA": (lambda: forge(NORTH, HERS, ca=True), None, "is a CA's"),
    "an unknown critical extension": (
        lambda: forge(NORTH, HERS, extra=[(STRANGE, True)]),
        None,
        r"1\.2\.3\.4",
    ),
    "a short RSA key": (
        lambda: forge(NORTH, HERS, subject_key=rsa.generate_private_key(65537, 1024).public_key()),
        None,
        "neither P-256",
    ),
    "garbage": (lambda: HERS_CUT, None, "cannot be parsed"),
    "huge": (lambda: b"x" * 20_000, None, "larger than"),
    "a chain": (lambda: under(NORTH) * 2, None, "one certificate is expected"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_every_other_certificate_is_refused(how: str) -> None:
    """Each for its own reason."""
    make, root, says = REFUSED[how]
    with pytest.raises(Unauthenticated, match=says):
        verify(make(), root)


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
    """The pin limits what the certificate does not."""
    root = unconstrained()
    assert not name_constraints(root.certificate)
    assert verify(under(root), root.certificate).institution == "north.example"
    with pytest.raises(Unauthenticated):
        verify(forge(root, names("south.example")), root.certificate)

"""Who a certificate proves to be, and each way in which one is refused."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from ddib_fed.errors import InputError, PeerUnknown, Unauthenticated
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


def verify(pem: bytes, pins: Pins = PINS) -> Identity:
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


@pytest.mark.parametrize("kind", ["node", "client"])
def test_a_leaf_of_the_pinned_root_proves_its_identity(kind) -> None:
    """What the issuer makes is what the verifier accepts."""
    leaf = issue_leaf(NORTH, kind, "x-1", public_key=new_key().public_key(), now=NOW)
    assert verify(certificate_pem(leaf)) == Identity("north.example", kind, "x-1")


@pytest.mark.parametrize("rolled", [0, 1])
def test_during_a_roll_over_either_root_vouches(rolled: int) -> None:
    """Two roots may be pinned together."""
    both = (NORTH, new_authority("north.example", now=NOW - HOUR))
    leaf = issue_leaf(both[rolled], "node", "node-1", public_key=new_key().public_key(), now=NOW)
    pins = {"north.example": tuple(authority.certificate for authority in both)}
    assert verify(certificate_pem(leaf), pins).name == "node-1"


def test_a_cross_minted_name_is_refused() -> None:
    """The root of south is pinned, and signs a leaf that names north: TLS alone would let it in."""
    with pytest.raises(Unauthenticated, match="not issued by the pinned root of north"):
        verify(forge(SOUTH, names("north.example")))


def test_a_root_with_the_right_name_and_another_key_is_refused() -> None:
    """A forger can copy the subject of a root, not its signature."""
    with pytest.raises(Unauthenticated, match="signature"):
        verify(forge(NORTH, names("north.example"), signer=new_key()))


def test_an_institution_that_was_not_admitted_is_unknown() -> None:
    """A good certificate of a root that nobody pinned."""
    west = new_authority("west.example", now=NOW - HOUR)
    with pytest.raises(PeerUnknown):
        verify(forge(west, names("west.example")))


@pytest.mark.parametrize(
    "uri",
    [
        "https://north.example/node/node-1",
        "spiffe://NORTH.example/node/node-1",
        "spiffe://north.example/node/Node-1",
        "spiffe://north.example:7443/node/node-1",
        "spiffe://north.example/admin/node-1",
        "spiffe://north.example/node/node-1/",
        "spiffe://north.example/node/a/b",
        "spiffe://north.example/node/node-1?x=1",
        "spiffe://north.example/node/node-1#x",
        "spiffe://north.example/node/%6eode",
        "spiffe://user@north.example/node/node-1",
        "spiffe://north/node/node-1",
        "spiffe://127.0.0.1/node/node-1",
        "spiffe://north.example/node/",
        "spiffe://north.example/node/" + "a" * 64,
        "spiffe://" + "a." * 130 + "example/node/x",
        "spiffe://north.example/node/-x",
        "spiffe://north.example/node/x\n",
        "spiffe://north.example./node/x",
        "",
    ],
)
def test_a_uri_of_another_form_is_no_identity(uri: str) -> None:
    """One spelling for each identity."""
    with pytest.raises(InputError):
        Identity.parse(uri)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([], "no readable subject alternative names"),
        ([x509.DNSName("node-1.north.example")], "one URI"),
        ([*names("north.example"), *names("north.example", "node-2")], "one URI"),
        ([x509.UniformResourceIdentifier("https://north.example/node/node-1")], "not an identity"),
        (names("north.example")[:1], "DNS name node-1.north.example"),
        ([names("north.example")[0], x509.DNSName("node-2.north.example")], "DNS name node-1.north.example"),
        ([*names("north.example"), x509.DNSName("south.example")], "and no other"),
        ([*names("north.example"), x509.IPAddress(ip_address("127.0.0.1"))], "and no other"),
        ([*names("north.example"), x509.DNSName("node-1.north.example")], "and no other"),
    ],
)
def test_other_names_than_the_two_are_refused(wrong: list[x509.GeneralName], says: str) -> None:
    """Exactly one URI, exactly the DNS name that belongs to it, no address."""
    with pytest.raises(Unauthenticated, match=says):
        verify(forge(NORTH, wrong))


def test_an_expired_certificate_is_refused() -> None:
    """At the very second."""
    with pytest.raises(Unauthenticated, match="expired"):
        verify(forge(NORTH, names("north.example"), end=NOW))


def test_a_certificate_from_the_future_is_refused() -> None:
    """Clocks may differ by the issuer's allowance, not more."""
    with pytest.raises(Unauthenticated, match="not valid before"):
        verify(forge(NORTH, names("north.example"), start=NOW + timedelta(seconds=1)))


def test_an_expired_root_vouches_for_nobody() -> None:
    """Even while its leaf would still be valid."""
    old = new_authority("north.example", now=NOW - timedelta(days=4000))
    with pytest.raises(Unauthenticated, match=r"the root of north\.example expired"):
        verify(forge(old, names("north.example")), {"north.example": (old.certificate,)})


def test_a_root_that_is_no_ca_vouches_for_nobody() -> None:
    """A leaf that was pinned by mistake."""
    fake = unconstrained(ca=False)
    with pytest.raises(Unauthenticated):
        verify(forge(fake, names("north.example")), {"north.example": (fake.certificate,)})


def test_name_constraints_of_another_institution_are_refused() -> None:
    """South's root, pinned for north by mistake, still cannot name north."""
    with pytest.raises(Unauthenticated, match="name constraints"):
        verify(forge(SOUTH, names("north.example")), {"north.example": (SOUTH.certificate,)})


def test_an_excluded_name_is_refused() -> None:
    """Exclusions win over what is permitted."""
    excluded = x509.NameConstraints(None, [x509.DNSName("north.example")])
    root = unconstrained(constraints=excluded)
    with pytest.raises(Unauthenticated, match="name constraints"):
        verify(forge(root, names("north.example")), {"north.example": (root.certificate,)})


def test_a_uri_constraint_is_one_host_exactly() -> None:
    """RFC 5280: without a leading dot a URI constraint does not include the names below, with one only those."""
    below = x509.NameConstraints([x509.UniformResourceIdentifier(".north.example")], None)
    with pytest.raises(Unauthenticated):
        check_root(unconstrained(constraints=below).certificate, "north.example")
    check_root(unconstrained(constraints=below).certificate, "lab.north.example")
    with pytest.raises(Unauthenticated):
        check_root(NORTH.certificate, "lab.north.example")


def test_a_root_without_constraints_vouches_for_its_own_institution_only() -> None:
    """The pin limits what the certificate does not."""
    root = unconstrained()
    assert not name_constraints(root.certificate)
    pins = {**PINS, "north.example": (root.certificate,)}
    assert verify(forge(root, names("north.example")), pins).institution == "north.example"
    with pytest.raises(Unauthenticated):
        verify(forge(root, names("south.example")), pins)


@pytest.mark.parametrize(
    ("kind", "usages", "says"),
    [
        ("node", (), "does not state its purpose"),
        ("node", (Usage.SERVER_AUTH,), "not for clientAuth"),
        ("node", (Usage.CLIENT_AUTH,), "serverAuth"),
        ("client", (Usage.CLIENT_AUTH, Usage.SERVER_AUTH), "serverAuth"),
    ],
)
def test_the_usage_must_be_the_roles(kind: str, usages: tuple[x509.ObjectIdentifier, ...], says: str) -> None:
    """A client's certificate cannot be a server's, and a node's must be both."""
    with pytest.raises(Unauthenticated, match=says):
        verify(forge(NORTH, names("north.example", "x", kind), usages=usages))


def test_a_ca_certificate_is_nobodys_identity() -> None:
    """A leaf that could sign others is not one."""
    with pytest.raises(Unauthenticated, match="is a CA's"):
        verify(forge(NORTH, names("north.example"), ca=True))


def test_an_unknown_critical_extension_is_refused() -> None:
    """Critical means: whoever does not understand it must refuse."""
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with pytest.raises(Unauthenticated, match=r"1\.2\.3\.4"):
        verify(forge(NORTH, names("north.example"), extra=[(strange, True)]))
    assert verify(forge(NORTH, names("north.example"), extra=[(strange, False)]))


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024).public_key(),
        ec.generate_private_key(ec.SECP224R1()).public_key(),
    ],
    ids=["rsa-1024", "p-224"],
)
def test_a_weak_key_is_refused(key: object) -> None:
    """Whatever the root signs."""
    with pytest.raises(Unauthenticated, match="neither P-256"):
        verify(forge(NORTH, names("north.example"), subject_key=key))


@pytest.mark.parametrize(
    "pem",
    [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"x" * 20_000],
    ids=["empty", "garbage", "huge"],
)
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(Unauthenticated):
        verify(pem)


def test_a_chain_is_refused_where_one_certificate_is_expected() -> None:
    """The leaf alone is looked at: nothing may hide behind it."""
    with pytest.raises(Unauthenticated, match="one certificate is expected"):
        verify(forge(NORTH, names("north.example")) * 2)


def test_a_name_that_only_ends_like_the_permitted_one_is_not_below_it() -> None:
    """evilnorth.example ends in north.example, and is another domain."""
    permitted = x509.NameConstraints([x509.DNSName("north.example")], None)
    root = unconstrained(constraints=permitted).certificate
    check_root(root, "north.example")
    check_root(root, "lab.north.example")
    with pytest.raises(Unauthenticated, match="name constraints"):
        check_root(root, "evilnorth.example")


def test_constraints_hold_for_the_leafs_own_name() -> None:
    """A root may vouch for the institution and still not for one of its names."""
    excluded = x509.NameConstraints(None, [x509.DNSName("node-1.north.example")])
    root = unconstrained(constraints=excluded)
    pins: Pins = {"north.example": (root.certificate,)}
    assert verify(forge(root, names("north.example", "node-2")), pins).name == "node-2"
    with pytest.raises(Unauthenticated, match=r"do not permit node-1\.north\.example"):
        verify(forge(root, names("north.example", "node-1")), pins)


def test_a_root_from_the_future_vouches_for_nobody() -> None:
    """Its leaf may be valid already."""
    root = new_authority("north.example", now=NOW + HOUR)
    with pytest.raises(Unauthenticated, match="the root of north"):
        verify(forge(root, names("north.example")), {"north.example": (root.certificate,)})

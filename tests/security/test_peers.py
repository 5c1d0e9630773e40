"""Whom a node trusts: peer files, fingerprints, suspensions and withdrawals, and what is read again when."""

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from ssl import DER_cert_to_PEM_cert

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ddib_fed import errors
from ddib_fed.node.policy import Policy
from ddib_fed.security import pki
from ddib_fed.security.admission import Admission, Verifier
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, parse_peer
from ddib_fed.security.pki import certificate_pem, issue_leaf, new_key
from tests.node.institutions import NOW, Institution, changed, forge, names
from tests.node.listening import DESCRIBE

ALICE = Identity("north.example", "client", "alice")


@pytest.fixture
def admitted(north: Institution, south: Institution) -> Institution:
    north.admit(south)
    return north


@pytest.mark.parametrize(
    "fields",
    [
        {"format_version": 2},
        {"extra": 1},
        {"institution": "west.example"},
        {"identity": "spiffe://south.example/client/alice"},
        {"address": "south.example:0"},
        {"roots": []},
        {"roots": ["\ud800"]},
        {"format_version": "x" * 5_000},
    ],
    ids=str,
)
def test_a_peer_file_of_another_form_is_refused(south: Institution, fields: dict[str, object]) -> None:
    with pytest.raises(errors.InputError, match=r"^south\.peer") as refused:
        parse_peer(changed(south.peer(), **fields), "south.peer")
    assert len(refused.value.detail) < 1_000
    twice = south.peer().to_bytes().decode().replace("{", '{"address": "south.example:1",', 1)
    with pytest.raises(errors.InputError, match="repeated"):  # a reader sees the first, JSON takes the last
        parse_peer(twice.encode(), "south.peer")


VERSION_3, VERSION_11 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x0a"
# A permitted subtree of a URI, and of an X.400 address, which cryptography does not read.
URI_TREE, X400_TREE = b"\x86\rsouth.example", b"\xa3\rsouth.example"


def damaged(root: x509.Certificate, of: bytes, by: bytes) -> str:
    der = root.public_bytes(Encoding.DER)
    assert der.count(of) == 1
    return DER_cert_to_PEM_cert(der.replace(of, by))


def test_roots_must_be_able_to_vouch_for_the_institution(north: Institution, south: Institution) -> None:
    """A leaf is no root; north's does not permit south; three are too many; a chain is not one; two are damaged."""
    leaf = issue_leaf(south.authority, "node", "x", public_key=new_key().public_key())
    root = certificate_pem(south.root).decode()
    for roots in (
        [certificate_pem(leaf).decode()],
        [certificate_pem(north.root).decode()],
        [root] * 3,
        [root + root],
        [damaged(south.root, VERSION_3, VERSION_11)],
        [damaged(south.root, URI_TREE, X400_TREE)],
    ):
        with pytest.raises(errors.InputError):
            parse_peer(changed(south.peer(), roots=roots), "south.peer")


@pytest.mark.parametrize("fingerprints", [[], ["SHA256:00"], [""]])
def test_a_fingerprint_that_differs_admits_nobody(north, south, fingerprints):
    with pytest.raises(errors.PolicyDenied, match="not confirmed"):
        north.store.add(south.peer(), fingerprints=fingerprints)
    assert not north.store.list()


def test_an_institution_is_not_its_own_peer(north: Institution) -> None:
    """Its roots are in roots.pem, and come from nowhere else; also where somebody wrote the file."""
    with pytest.raises(errors.PolicyDenied):
        north.admit(north)
    content = json.loads(north.store.file.read_bytes())
    north.store.file.write_text(json.dumps(content | {"peers": [north.peer().fields()]}))
    with pytest.raises(errors.InputError, match="own institution"):
        north.store.snapshot()


def test_a_new_root_needs_its_fingerprint(admitted: Institution, south: Institution, tmp_path: Path) -> None:
    new = pki.create_institution(tmp_path / "new", "south.example").certificate
    both = Peer("south.example", south.identity, "127.0.0.1:7443", (south.root, new))
    with pytest.raises(errors.PolicyDenied):
        admitted.store.add(both, fingerprints=[pki.fingerprint(south.root)], replace=True)
    admitted.store.add(both, fingerprints=[pki.fingerprint(new)], replace=True)
    assert admitted.store.snapshot().pins["south.example"] == (south.root, new)


def test_a_suspension_is_on_the_disk_and_ends_when_it_is_lifted(admitted: Institution) -> None:
    """Another store of the same folder, as after a restart, knows it; the peer's entry stays as it was."""
    before = admitted.store.list()
    assert admitted.store.suspend("south.example", reason="audit until Friday")
    assert not admitted.store.suspend("south.example")
    assert admitted.store.list() == before
    with pytest.raises(errors.PeerSuspended, match="audit until Friday"):
        admitted.store.get("south.example")
    moved = replace(before[0], address="moved.example:1")
    admitted.store.add(moved, fingerprints=[], replace=True)
    with pytest.raises(errors.PeerSuspended):
        admitted.store.get("south.example")
    assert admitted.store.resume("south.example")
    assert not admitted.store.resume("south.example")
    assert admitted.store.get("south.example") == moved


@pytest.mark.parametrize("how", ["torn", "removed", "pipe", "large"])
def test_a_store_that_cannot_be_read_changes_nothing_and_is_a_problem(admitted, how):
    """A running node goes on refusing whom it refused; a start is refused, and so is a change."""
    store, path = admitted.store, admitted.store.file
    store.withdraw(ALICE)
    before = store.snapshot()
    data = path.read_bytes()
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how != "removed":
        path.touch(0o600)
        path.write_bytes(data[:-9] if how == "torn" else data + b" " * (4 << 20))
    assert store.snapshot() is before
    assert "trust.json" in (store.problem or "")
    with pytest.raises(errors.DdibError, match=r"trust\.json"):
        admitted.store.snapshot()
    with pytest.raises(errors.DdibError, match=r"trust\.json"):
        admitted.store.reinstate(ALICE)


def test_a_store_that_others_may_write_is_not_used(admitted: Institution) -> None:
    admitted.store.file.chmod(0o666)
    with pytest.raises(errors.DdibError, match="can be read by others"):
        admitted.store.snapshot()


def test_a_change_within_the_resolution_of_time_stamps_is_seen(admitted: Institution) -> None:
    store, path = admitted.store, admitted.store.file
    assert store.get("south.example").address == "127.0.0.1:7443"
    stamp = path.stat()
    path.write_bytes(path.read_bytes().replace(b"127.0.0.1:7443", b"127.0.0.1:7444"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert store.get("south.example").address == "127.0.0.1:7444"


def test_own_roots_that_become_unreadable_stay_in_use_and_are_a_problem(admitted: Institution) -> None:
    """The node's own clients are not locked out; a peer that is removed meanwhile is."""
    store = admitted.store
    assert store.snapshot().own_roots == (admitted.root,)
    (admitted.pki / "roots.pem").unlink()
    assert store.snapshot().own_roots == (admitted.root,)
    assert "roots.pem" in (store.problem or "")
    store.remove("south.example")
    assert not store.list()


def test_a_certificate_is_verified_again_when_its_root_has_ended(north, south):
    south.admit(north)
    now = NOW
    verifier = Verifier(south.store, lambda: now)
    end = north.root.not_valid_after_utc
    leaf = forge(north.authority, names("north.example"), end=end + timedelta(days=400))
    assert verifier.verify(leaf) is verifier.verify(leaf)
    now = end - timedelta(seconds=1)
    verifier.verify(leaf)
    now = end
    with pytest.raises(errors.Unauthenticated, match="the root of north"):
        verifier.verify(leaf)


def test_a_call_ends_when_its_institution_names_another_node(north: Institution, south: Institution) -> None:
    south.admit(north)
    policy = Policy(institution="south.example", roles=("target",), issuer=False)
    leaf = forge(north.authority, names("north.example"))
    call = Admission(leaf, DESCRIBE, Verifier(south.store, lambda: NOW), policy)
    call.check()
    other = replace(north.peer(), identity=Identity("north.example", "node", "node-2"))
    south.store.add(other, fingerprints=[], replace=True)
    with pytest.raises(errors.PeerUnknown):
        call.check()


def test_a_peer_that_is_removed_is_not_suspended_when_it_is_admitted_again(admitted: Institution) -> None:
    """The operator who admits it again has just compared its fingerprint."""
    admitted.store.suspend("south.example")
    (peer,) = admitted.store.list()
    admitted.store.remove("south.example")
    admitted.store.add(peer, fingerprints=peer.fingerprints)
    assert admitted.store.get("south.example") == peer

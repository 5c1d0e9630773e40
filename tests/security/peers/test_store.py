"""Who is admitted: the peer file, the fingerprint, and what is read again when."""

from __future__ import annotations

import json
import os
from pathlib import Path
from ssl import DER_cert_to_PEM_cert

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ddib_fed.errors import AlreadyExists, InputError, PeerNotFound, PolicyDenied
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, parse_peer
from ddib_fed.security.pki import certificate_pem, issue_leaf, new_key
from tests.node.institutions import Institution


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


@pytest.fixture
def south(tmp_path: Path) -> Institution:
    return Institution("south.example", tmp_path / "south")


def changed(peer: Peer, **fields: object) -> bytes:
    content = json.loads(peer.to_bytes()) | fields
    return json.dumps({key: value for key, value in content.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"format_version": 2},
        {"format_version": None},
        {"extra": 1},
        {"format_version": True},
        {"institution": "SOUTH.example"},
        {"institution": "west.example"},
        {"institution": 7},
        {"identity": "spiffe://south.example/client/alice"},
        {"identity": "spiffe://west.example/node/node-1"},
        {"identity": "south"},
        {"address": "south.example"},
        {"address": "south.example:0"},
        {"address": "south.example:99999"},
        {"address": "https://south.example:443"},
        {"address": "a b:1"},
        {"roots": []},
        {"roots": "x"},
        {"roots": [1]},
        {"roots": ["no certificate"]},
        {"roots": ["\ud800"]},
        {"institution": "\ud800"},
        {"identity": "\x1b[2J"},
        {"format_version": "x" * 5_000},
    ],
    ids=str,
)
def test_a_peer_file_of_another_form_is_refused(south: Institution, fields: dict[str, object]) -> None:
    """Exactly the five fields, each checked; the error names the file and is short."""
    with pytest.raises(InputError, match=r"^south\.peer") as refused:
        parse_peer(changed(south.peer(), **fields), "south.peer")
    assert len(refused.value.detail) < 1_000


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b"[" * 50_000], ids=["empty", "list", "torn", "bytes", "deep"]
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    """Whatever somebody sends by mail."""
    with pytest.raises(InputError):
        parse_peer(data, "x")


def test_a_field_that_stands_twice_is_refused(south: Institution) -> None:
    """Whoever reads the file sees the first, JSON takes the last."""
    text = south.peer().to_bytes().decode().replace("{", '{"address": "south.example:1",', 1)
    with pytest.raises(InputError, match="repeated"):
        parse_peer(text.encode(), "south.peer")


def test_roots_must_be_able_to_vouch_for_the_institution(north: Institution, south: Institution) -> None:
    """A leaf is no root; north's root does not permit south; three roots are too many; a chain is not one root."""
    leaf = issue_leaf(south.authority, "node", "x", public_key=new_key().public_key())
    root = certificate_pem(south.root).decode()
    for roots in (
        [certificate_pem(leaf).decode()],
        [certificate_pem(north.root).decode()],
        [root] * 3,
        [root + root],
    ):
        with pytest.raises(InputError):
            parse_peer(changed(south.peer(), roots=roots), "south.peer")


def test_a_peer_is_added_with_its_fingerprint(north: Institution, south: Institution) -> None:
    """And is then pinned, beside the own institution."""
    north.admit(south)
    snapshot = north.store.snapshot()
    assert snapshot.pins == {"north.example": (north.root,), "south.example": (south.root,)}
    assert snapshot.is_admitted_node(south.identity)
    assert snapshot.roots_pem == certificate_pem(south.root, north.root)


@pytest.mark.parametrize("fingerprints", [[], ["SHA256:00"], [""]])
def test_a_fingerprint_that_differs_admits_nobody(
    north: Institution, south: Institution, fingerprints
) -> None:
    """That is what it is for."""
    with pytest.raises(PolicyDenied, match="not confirmed"):
        north.store.add(south.peer(), fingerprints=fingerprints)
    assert not north.store.list()


def test_only_the_named_node_is_admitted(north: Institution, south: Institution) -> None:
    """Not another node, and no client, of the same institution."""
    north.admit(south)
    snapshot = north.store.snapshot()
    assert not snapshot.is_admitted_node(Identity("south.example", "node", "node-2"))
    assert not snapshot.is_admitted_node(Identity("south.example", "client", "node-1"))
    assert not snapshot.is_admitted_node(north.identity)


def test_an_institution_is_not_its_own_peer(north: Institution) -> None:
    """Its roots are in roots.pem, and come from nowhere else."""
    with pytest.raises(PolicyDenied):
        north.admit(north)


def test_an_entry_is_replaced_only_when_asked(north: Institution, south: Institution) -> None:
    """A new address needs no new fingerprint; adding the same again is no error."""
    north.admit(south)
    north.admit(south)
    with pytest.raises(AlreadyExists):
        north.admit(south, "elsewhere:1")
    north.store.add(south.peer("elsewhere:1"), fingerprints=[], replace=True)
    assert north.store.get("south.example").address == "elsewhere:1"


def test_a_new_root_needs_its_fingerprint(north: Institution, south: Institution, tmp_path: Path) -> None:
    """In a roll-over the pinned root needs none, the new one does."""
    north.admit(south)
    new = pki.create_institution(tmp_path / "new", "south.example").certificate
    both = Peer("south.example", south.identity, "127.0.0.1:7443", (south.root, new))
    with pytest.raises(PolicyDenied):
        north.store.add(both, fingerprints=[pki.fingerprint(south.root)], replace=True)
    north.store.add(both, fingerprints=[pki.fingerprint(new)], replace=True)
    assert north.store.snapshot().pins["south.example"] == (south.root, new)


def test_a_removed_peer_is_gone_at_once(north: Institution, south: Institution) -> None:
    """From a store that had read it."""
    north.admit(south)
    store = north.store
    assert store.get("south.example").identity == south.identity
    north.store.remove("south.example")
    with pytest.raises(PeerNotFound):
        store.get("south.example")
    assert "south.example" not in store.snapshot().pins


@pytest.mark.parametrize("institution", ["south.example", "../../x", "a/b.example"])
def test_removing_whom_nobody_admitted_is_an_error(north: Institution, institution: str) -> None:
    """And no path is made of a name."""
    with pytest.raises((PeerNotFound, InputError)):
        north.store.remove(institution)


def test_a_change_within_the_resolution_of_time_stamps_is_seen(
    north: Institution, south: Institution
) -> None:
    """Same inode, same size, same time stamp: only the content differs."""
    north.admit(south, "127.0.0.1:7443")
    store, path = north.store, north.folder / "peers" / "south.example.json"
    assert store.get("south.example").address == "127.0.0.1:7443"
    stamp = path.stat()
    path.write_bytes(south.peer("127.0.0.1:7444").to_bytes())
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert store.get("south.example").address == "127.0.0.1:7444"


def damaged(pem: str, *, of: bytes, by: bytes) -> str:
    der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
    assert der.count(of) == 1
    return DER_cert_to_PEM_cert(der.replace(of, by))


VERSION_3, VERSION_11 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x0a"
# A permitted subtree of a URI, and of an X.400 address, which cryptography does not read.
URI_TREE, X400_TREE = b"\x86\rsouth.example", b"\xa3\rsouth.example"


@pytest.mark.parametrize(
    ("of", "by"), [(VERSION_3, VERSION_11), (URI_TREE, X400_TREE)], ids=["version", "name"]
)
def test_a_root_that_is_damaged_anywhere_admits_nobody_and_stops_nobody_else(
    north: Institution, south: Institution, of: bytes, by: bytes
) -> None:
    """The other peers' calls go on: what cryptography raises for such a certificate is no ValueError."""
    west = Institution("west.example", north.folder.parent / "west")
    north.admit(south)
    north.admit(west)
    store, path = north.store, north.folder / "peers" / "south.example.json"
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content | {"roots": [damaged(content["roots"][0], of=of, by=by)]}))
    assert [peer.institution for peer in store.list()] == ["west.example"]
    assert "south.example.json" in (store.problem or "")


@pytest.mark.parametrize("broken", [b"", b"{}", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_admits_nobody_and_is_a_problem(
    north: Institution, south: Institution, broken: bytes
) -> None:
    """Fail closed, and say so in the node's health."""
    north.admit(south)
    store = north.store
    assert store.problem is None
    (north.folder / "peers" / "south.example.json").write_bytes(broken)
    assert not store.list()
    assert "south.example.json" in (store.problem or "")


def test_a_file_under_another_name_admits_nobody(north: Institution, south: Institution) -> None:
    """Nor one that names the own institution, whose roots are not given by peers."""
    folder = north.folder / "peers"
    folder.mkdir()
    (folder / "west.example.json").write_bytes(south.peer().to_bytes())
    (folder / "north.example.json").write_bytes(north.peer().to_bytes())
    store = north.store
    assert not store.list()
    assert store.snapshot().pins == {"north.example": (north.root,)}
    assert store.problem


def test_own_roots_that_become_unreadable_stay_in_use_and_are_a_problem(north: Institution) -> None:
    """The node's own clients are not locked out by a half-finished edit."""
    store = north.store
    assert store.snapshot().own_roots == (north.root,)
    (north.pki / "roots.pem").unlink()
    assert store.snapshot().own_roots == (north.root,)
    assert "roots.pem" in (store.problem or "")


def test_reload_says_what_changed(north: Institution, south: Institution) -> None:
    """For the operator's terminal."""
    store = north.store
    assert store.reload() == []
    north.admit(south)
    root = f"root {pki.fingerprint(south.root)} of south.example"
    assert store.reload() == [f"added peer south.example: {south.identity} at {south.peer().address}", root]
    north.store.add(south.peer("elsewhere:1"), fingerprints=[], replace=True)
    assert store.reload() == [f"changed peer south.example: {south.identity} at elsewhere:1", root]
    north.store.remove("south.example")
    assert store.reload() == ["removed peer south.example"]
    (north.pki / "withdrawn.txt").write_text("spiffe://north.example/client/alice\nbob\n")
    withdrew, not_read = store.reload()
    assert withdrew == "withdrew spiffe://north.example/client/alice"
    assert not_read.startswith("not read: ")

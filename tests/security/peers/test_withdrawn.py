"""The list of withdrawn identities: however it is damaged, nobody whom it named is let in again."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest

from ddib_fed.errors import InputError, PeerUnknown, PolicyDenied
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import PeerStore
from ddib_fed.security.withdrawn import LAST_WITHDRAWN, load_withdrawn, parse_withdrawn, reinstate, withdraw
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.institutions import Institution
from tests.node.listening import Listening

ALICE = Identity("north.example", "client", "alice")
BOB = Identity("north.example", "client", "bob")
REST_NS = 3_000_000_000


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


class Clock:
    """Time as the store sees it; files have the real one."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        import time

        return time.time_ns() + self.ahead_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(north: Institution, clock: Clock) -> PeerStore:
    return PeerStore(north.folder / "peers", own_institution=north.name, pki_folder=north.pki, clock_ns=clock)


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + f"{ALICE}\n".encode(),
        f"{ALICE}\r\n# end\r\n".encode(),
        f"\t {ALICE} # lost: laptop\n".encode(),
        f"{ALICE}".encode(),
    ],
    ids=["bom", "crlf", "comment", "no-newline"],
)
def test_a_list_is_read_however_an_editor_saves_it(data: bytes) -> None:
    """With a BOM (before: refused as no identity, and nobody was withdrawn), with CR LF, without a last newline."""
    found = parse_withdrawn(data, "withdrawn.txt")
    assert (found.identities, found.problem) == ({ALICE}, None)


DAMAGED = {
    "utf-16": f"{ALICE}\n".encode("utf-16"),
    "utf-16-without-bom": f"{ALICE}\n".encode("utf-16-le"),
    "latin-1": f"{ALICE}  # fermé\n".encode("latin-1"),
    "two-names": f"{ALICE} {BOB}\n".encode(),
    "comma": f"{ALICE},{BOB}\n".encode(),
    "cr-alone": f"# laptops\r{ALICE}\r".encode(),
    "line-separator": f"# laptops\u2028{ALICE}\n".encode(),
    "vertical-tab": f"# laptops\v{ALICE}\n".encode(),
    "typing-error": f"{ALICE}x y\n".encode(),
    "upper-case": b"SPIFFE://north.example/client/alice\n",
    "name-alone": b"alice\n",
    "too-large": b"#" * 70_000,
    "empty": b"",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_list_withdraws_whom_it_withdrew_and_is_a_problem(
    north: Institution, store: PeerStore, data: bytes
) -> None:
    """While the node runs; before, `withdrawn` was empty for each of these and alice was let in."""
    (north.pki / "withdrawn.txt").write_text(f"{ALICE}\n{BOB}\n")
    assert store.snapshot().withdrawn == {ALICE, BOB}
    (north.pki / "withdrawn.txt").write_bytes(data)
    assert store.snapshot().withdrawn == {ALICE, BOB}
    assert "withdrawn.txt" in (store.problem or "")
    with pytest.raises(InputError, match=r"withdrawn\.txt"):
        store.check_withdrawn()


@pytest.mark.parametrize("name", [name for name in DAMAGED if name != "empty"])
def test_a_damaged_list_stops_a_start(north: Institution, store: PeerStore, name: str) -> None:
    """A node that never read it cannot know whom to refuse; what to do is in the hint."""
    (north.pki / "withdrawn.txt").write_bytes(DAMAGED[name])
    with pytest.raises(InputError, match=r"withdrawn\.txt") as failed:
        store.check_withdrawn()
    assert "correct" in failed.value.hint


@pytest.mark.parametrize("how", ["removed", "link", "folder", "pipe"])
def test_a_list_that_is_gone_reinstates_nobody(north: Institution, store: PeerStore, how: str) -> None:
    """Removed, replaced by a link that leads nowhere, a folder or a pipe that nobody writes: who was out stays out."""
    path = north.pki / "withdrawn.txt"
    path.write_text(f"{ALICE}\n")
    assert store.snapshot().withdrawn == {ALICE}
    path.unlink()
    if how == "link":
        path.symlink_to(north.pki / "nowhere")
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    assert store.snapshot().withdrawn == {ALICE}
    assert "withdrawn.txt" in (store.problem or "")
    if how != "removed":
        with pytest.raises(InputError) as refused:
            load_withdrawn(north.pki)
        assert refused.value.hint.startswith(f"namei -l {path} ")


def test_a_list_that_went_while_the_node_was_down_is_missed(
    north: Institution, store: PeerStore, clock: Clock
) -> None:
    """The node notes whom it refuses; a start without the list is refused, and the hint puts it back."""
    store.check_withdrawn()
    path = north.pki / "withdrawn.txt"
    path.write_text(f"{ALICE}\n")
    store.keep_withdrawn()
    path.unlink()
    with pytest.raises(InputError, match="1 in all") as failed:
        north.store.check_withdrawn()
    assert north.store.snapshot().withdrawn == {ALICE}
    assert f"cp {north.pki / LAST_WITHDRAWN} {path}" in failed.value.hint
    path.write_bytes((north.pki / LAST_WITHDRAWN).read_bytes())
    north.store.check_withdrawn()
    assert len(north.store.snapshot().withdrawn) == 1
    path.write_text("# nobody\n")
    north.store.check_withdrawn()


def test_a_name_goes_from_a_list_only_when_the_list_has_rested(
    north: Institution, store: PeerStore, clock: Clock
) -> None:
    """An editor that truncates and then writes lets nobody in for the moment between; what is added holds at once."""
    path = north.pki / "withdrawn.txt"
    path.write_text(f"{ALICE}\n")
    assert store.snapshot().withdrawn == {ALICE}
    path.write_text("# half writ")
    assert store.snapshot().withdrawn == {ALICE}
    path.write_text(f"# half written\n{BOB}\n")
    assert store.snapshot().withdrawn == {ALICE, BOB}
    held = store.snapshot()
    assert store.snapshot() is held
    clock.ahead_ns = REST_NS
    assert store.snapshot().withdrawn == {BOB}
    assert store.problem is None


def test_a_withdrawn_caller_is_refused_while_the_list_is_damaged(tmp_path: Path) -> None:
    """Over mutual TLS, with a certificate that is good: before, the call after the damage was answered."""
    north, south = (Institution(f"{name}.example", tmp_path / name) for name in ("north", "south"))
    south.admit(north)
    node = Listening(south)
    try:
        with node.stub(north) as stub:
            for data in (f"{north.identity}\n".encode(), f"{north.identity}\n".encode("utf-16")):
                (south.pki / "withdrawn.txt").write_bytes(data)
                with pytest.raises(grpc.RpcError) as error:
                    stub.DescribeDomain(pb.DescribeDomainRequest(), timeout=5)
                assert type(from_rpc_error(error.value, "south")) is PeerUnknown
    finally:
        node.close()


def test_withdrawing_keeps_what_else_the_list_says(north: Institution) -> None:
    """Comments stay, a second time changes nothing, and a name that is let in again leaves its line as a comment."""
    path = north.pki / "withdrawn.txt"
    path.write_bytes(b"\xef\xbb\xbf# lost laptops\r\n" + f"{BOB}  # in March\r\n".encode())
    assert withdraw(north.pki, ALICE, comment="stolen")
    assert not withdraw(north.pki, ALICE)
    assert path.read_text().splitlines() == ["# lost laptops", f"{BOB}  # in March", f"{ALICE}  # stolen"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert reinstate(north.pki, BOB)
    assert not reinstate(north.pki, BOB)
    assert load_withdrawn(north.pki).identities == {ALICE}
    assert f"{BOB}  # in March" in path.read_text()


@pytest.mark.parametrize("comment", ["two\nlines", "a\rreturn", "x" * 70_000])
def test_a_comment_that_would_damage_the_list_is_refused(north: Institution, comment: str) -> None:
    """The list stays as it was."""
    withdraw(north.pki, BOB)
    before = (north.pki / "withdrawn.txt").read_bytes()
    with pytest.raises(InputError):
        withdraw(north.pki, ALICE, comment=comment)
    assert (north.pki / "withdrawn.txt").read_bytes() == before


def test_a_damaged_list_is_not_edited(north: Institution) -> None:
    """What cannot be read whole is for a person to correct; nothing of it is lost."""
    path = north.pki / "withdrawn.txt"
    path.write_bytes(DAMAGED["utf-16"])
    for edit in (withdraw, reinstate):
        with pytest.raises(InputError, match="UTF-16"):
            edit(north.pki, ALICE)
    assert path.read_bytes() == DAMAGED["utf-16"]


def test_a_withdrawn_client_is_issued_no_certificate(north: Institution, tmp_path: Path) -> None:
    """It would be refused, and somebody would look for the reason elsewhere."""
    withdraw(north.pki, ALICE)
    with pytest.raises(PolicyDenied, match="withdrawn") as failed:
        pki.issue_client(north.pki, tmp_path / "alice", "alice")
    assert f"ddib pki withdraw --undo {ALICE}" in failed.value.hint
    assert not os.path.lexists(tmp_path / "alice")

"""Nobody speaks for another: who comes (identity), asks for what (call), at which port and in which state of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from tests.conftest import Evidence
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_institution, tiny_engine
from tests.security.callers import ANYBODY, CALLS, FOR_CLIENTS, FOR_PEERS, Caller, impostors, outcome
from tests.source_node.test_service import Served
from tests.target_node.conftest import Target

pytestmark = pytest.mark.promise("identity")

HEALTH_ONLY = {
    "target": {"another node of north", "a client of north", "a client of west", "a client of south",
               "south's own node", "another node of south"},
    "source": {"a client of south", "south's own node", "another node of south", "another node of north"},
}  # fmt: skip
"""Whom a port's TLS and certificate check let in, and no further than Health."""
IMPOSTORS = tuple(impostors(None, None, None))  # type: ignore[arg-type]


class Ports:
    """South's target port, which admits north and west; north's source port, whose clients are alice and mallory."""

    def __init__(self, folder: Path) -> None:
        self.north, self.south, self.west = (
            make_institution(folder / name, f"{name}.example") for name in ("north", "south", "west")
        )
        self.south.admit(self.north)
        self.south.admit(self.west)
        self.engine = tiny_engine()
        self.target = Target(folder / "south", self.south, self.engine)
        self.north.admit(self.south, self.target.server.address)
        self.source = Served(folder, self.north, self.engine)

    def ask(self, port: str, caller: Caller) -> dict[str, str]:
        """What came of each call at "target" or "source"."""
        address, server = {
            "target": (self.target.server.address, self.south),
            "source": (self.source.server.address, self.north),
        }[port]
        with caller.channel(address, server) as channel:
            return {name: outcome(channel, method) for name, method in CALLS.items()}

    def node(self, who: Institution) -> Caller:
        return Caller((who.pki / "leaf.pem").read_bytes(), (who.pki / "leaf.key").read_bytes())

    def close(self) -> None:
        self.source.close()
        self.target.close()
        self.engine.close()


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    made = Ports(tmp_path_factory.mktemp("ports"))
    yield made
    made.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Ports]:
    made = Ports(tmp_path)
    yield made
    made.close()


def answered(found: dict[str, str]) -> set[str]:
    return {call for call, what in found.items() if what == "answered"}


@pytest.mark.parametrize("who", IMPOSTORS)
@pytest.mark.parametrize("port", ["target", "source"])
def test_an_impostor_is_refused_every_call(ports: Ports, port: str, who: str, evidence: Evidence) -> None:
    """Twenty-one identities, each with every call of every service at both ports: no servicer sees one."""
    caller = impostors(ports.north, ports.south, ports.west)[who]()
    found = ports.ask(port, caller)
    evidence.cases(len(found))
    allowed = set(ANYBODY) if who in HEALTH_ONLY[port] else set()
    if (port, who) == ("source", "a client of north"):
        allowed = {*ANYBODY, *FOR_CLIENTS}  # she is one, whatever she is called
    assert answered(found) == allowed, found


@pytest.mark.parametrize("who", ["north", "west"])
def test_an_admitted_node_may_decode_and_nothing_else(ports: Ports, who: str) -> None:
    """What is refused above is refused for the identity: these two are answered, and no further than that."""
    assert answered(ports.ask("target", ports.node(getattr(ports, who)))) == {*ANYBODY, *FOR_PEERS}


def test_an_admitted_target_may_not_ask_its_source(ports: Ports) -> None:
    """South, which north admitted as a target, is let in to Health alone at north's port for clients."""
    assert answered(ports.ask("source", ports.node(ports.south))) == ANYBODY


def test_a_client_may_translate_and_nothing_else(ports: Ports) -> None:
    """Alice at her own node, and at the peer's."""
    folder = ports.source.folder / "alice"
    alice = Caller((folder / "leaf.pem").read_bytes(), (folder / "leaf.key").read_bytes())
    assert answered(ports.ask("source", alice)) == {*ANYBODY, *FOR_CLIENTS}
    assert answered(ports.ask("target", alice)) == ANYBODY


def test_a_live_connection_does_not_outlive_its_admission(fresh: Ports) -> None:
    """Removed, admitted again and with another root pinned, each on the same open connection: its next call counts."""
    north = fresh.node(fresh.north)
    method = CALLS["Describe"]
    with north.channel(fresh.target.server.address, fresh.south) as channel:
        assert outcome(channel, method) == "answered"
        fresh.south.store.remove("north.example")
        assert outcome(channel, method) == "refused"
        fresh.south.admit(fresh.north)
        assert outcome(channel, method) == "answered"
        other = Institution("north.example", fresh.source.folder / "other")
        fresh.south.store.add(other.peer(), fingerprints=[pki.fingerprint(other.root)], replace=True)
        assert outcome(channel, method) == "refused"


def test_a_withdrawn_client_is_refused_on_a_live_connection(fresh: Ports) -> None:
    """Her certificate is good for a month; the institution's list counts."""
    folder = fresh.source.folder / "alice"
    alice = Caller((folder / "leaf.pem").read_bytes(), (folder / "leaf.key").read_bytes())
    with alice.channel(fresh.source.server.address, fresh.north) as channel:
        assert outcome(channel, CALLS["ListDomains"]) == "answered"
        fresh.north.store.withdraw(Identity("north.example", "client", "alice"))
        assert {outcome(channel, CALLS[call]) for call in FOR_CLIENTS} == {"refused"}


@pytest.mark.parametrize("who", ["another node of north", "a client of south", "west signs as north"])
def test_a_node_that_is_not_ready_tells_impostors_nothing(tmp_path: Path, who: str) -> None:
    """Without its model, as while it loads: refused for the identity, before the state could be seen."""
    north, south, west = (make_institution(tmp_path / n, f"{n}.example") for n in ("north", "south", "west"))
    south.admit(north)
    south.admit(west)
    target = Target(tmp_path / "south", south, None)
    try:
        caller = impostors(north, south, west)[who]()
        with caller.channel(target.server.address, south) as channel:
            assert outcome(channel, CALLS["Describe"]) in {"refused", "no connection"}
    finally:
        target.close()

"""What a diagnosis says of a peer; `tests/cli/client/test_broken_setups.py` has each cause."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddib_fed.errors import PeerUnreachable
from ddib_fed.security.diagnosis import Diagnosis, diagnose, explained, may_pass
from ddib_fed.security.pki import certificate_pem
from tests.node.institutions import Institution
from tests.node.listening import Listening


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


@pytest.fixture
def south(tmp_path: Path, north: Institution) -> Institution:
    made = Institution("south.example", tmp_path / "south")
    made.admit(north)
    return made


@pytest.fixture
def node(south: Institution) -> Iterator[Listening]:
    listening = Listening(south)
    yield listening
    listening.close()


def look(address: str, north: Institution, south: Institution, **overrides) -> Diagnosis:
    arguments = {
        "server_name": "node-1.south.example",
        "pki_folder": north.pki,
        "roots_pem": certificate_pem(south.root),
    } | overrides
    finding = diagnose(address, **arguments)
    assert finding.ok == (finding.cause == "ok")
    assert finding.ok or finding.remedy
    return finding


def test_a_name_server_that_does_not_answer_is_no_missing_host(
    north: Institution, south: Institution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may answer in a moment, and a name that does not exist will not."""

    def away(*_arguments: object, **_keywords: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", away)
    finding = look("south.example:7443", north, south)
    assert (finding.cause, may_pass(finding.cause)) == ("no-connection", True)
    assert not may_pass("name-not-found")


def test_a_call_that_failed_although_the_connection_works_keeps_its_error(
    node: Listening, north: Institution, south: Institution
) -> None:
    """Nothing is invented; and an answer with an incident needs no diagnosis."""
    lost = PeerUnreachable("the connection broke off", hop="target south.example")
    arguments = {
        "server_name": "node-1.south.example",
        "pki_folder": north.pki,
        "roots_pem": certificate_pem(south.root),
    }

    def look() -> Diagnosis:
        return diagnose(node.address, **arguments)

    assert explained(lost, look) is lost
    node.close()
    found = explained(lost, look)
    assert (found.facts["cause"], found.hop) == ("nothing-listens", "target south.example")
    answered = PeerUnreachable("as it said", incident="abc")
    assert explained(answered, look) is answered

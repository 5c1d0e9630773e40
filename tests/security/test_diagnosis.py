"""What a diagnosis says of a peer; `tests/cli/client/test_broken_setups.py` has each cause."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ddib_fed.errors import PeerUnreachable
from ddib_fed.security.diagnosis import Diagnosis, diagnose, explained, may_pass
from ddib_fed.security.pki import certificate_pem
from tests.node.institutions import Institution
from tests.node.listening import Listening


def look(address: str, north: Institution, south: Institution) -> Diagnosis:
    roots = certificate_pem(south.root)
    return diagnose(address, server_name="node-1.south.example", pki_folder=north.pki, roots_pem=roots)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Institution, Institution]:
    north, south = (Institution(f"{name}.example", tmp_path / name) for name in ("north", "south"))
    south.admit(north)
    return north, south


def test_a_name_server_that_does_not_answer_is_no_missing_host(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may answer in a moment, and a name that does not exist will not."""

    def away(*_arguments: object, **_keywords: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", away)
    finding = look("south.example:7443", *pair)
    assert (finding.cause, finding.ok, bool(finding.remedy)) == ("no-connection", False, True)
    assert may_pass(finding.cause)
    assert not may_pass("name-not-found")


def test_a_call_that_failed_although_the_connection_works_keeps_its_error(pair) -> None:
    """Nothing is invented; and an answer with an incident needs no diagnosis."""
    lost, node = PeerUnreachable("the connection broke off", hop="target south.example"), Listening(pair[1])
    assert explained(lost, lambda: look(node.address, *pair)) is lost
    node.close()
    found = explained(lost, lambda: look(node.address, *pair))
    assert (found.facts["cause"], found.hop) == ("nothing-listens", lost.hop)
    answered = PeerUnreachable("it said so", incident="3f2a")
    assert explained(answered, lambda: look(node.address, *pair)) is answered

"""`ddib doctor` names the cause at the first step that fails."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode, NotReady, PeerUnknown, PeerUnreachable, Unauthenticated
from ddib_fed.security.pki import issue_leaf, new_authority, new_key, write_identity
from tests.client.scripted_source import SourceNodeDouble


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


def doctor(profile) -> int:
    return run(["doctor", "--profile", str(profile)])


def test_all_is_well(north, capsys):
    """Each step with what was found."""
    assert doctor(north.profile_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", "profile"], ["ok", "certificate"], ["ok", "connection"], ["ok", "service"], ["ok", "clock"]
    ]  # fmt: skip


def test_a_certificate_of_somebody_else_is_a_refusal(north):
    """The folder's certificate is not the profile's: exit 5."""
    north.profile_path.write_text(north.profile_path.read_text().replace('"alice"', '"bob"'))
    assert doctor(north.profile_path) == ExitCode.REFUSED


def test_an_expired_certificate_fails_at_its_own_step(north, capsys):
    """Its line said ok, and the connection failed after it."""
    folder = north.profile_path.parent / "pki"
    authority, key = new_authority("north.example"), new_key()
    made = issue_leaf(
        authority, "client", "alice", public_key=key.public_key(), now=datetime.now(UTC) - timedelta(days=40)
    )
    write_identity(folder, certificate=made, key=key, roots=(authority.certificate,))
    assert doctor(north.profile_path) != 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "FAIL  certificate"
    assert "expired at" in shown.err


def test_nothing_listens_is_not_now(north):
    """Exit 9, for scripts that try again; the causes are in test_broken_setups.py."""
    north.stop()
    assert doctor(north.profile_path) == ExitCode.UNAVAILABLE


@pytest.mark.parametrize("kind", [Unauthenticated, PeerUnreachable, NotReady, PeerUnknown])
def test_what_the_node_refuses_does_not_lead_back_to_the_doctor(north, capsys, kind):
    """The last step that it has: somebody else knows more."""
    north.script.refuse["ListDomains"] = kind()
    assert doctor(north.profile_path) == kind.exit_code
    hint = capsys.readouterr().err.partition("try: ")[2]
    assert hint
    assert "ddib doctor" not in hint
    assert "operator" in hint


def test_a_node_of_an_older_release_does_not_say_its_time(north, capsys, monkeypatch):
    """The clocks cannot be compared, and that is no failure."""
    monkeypatch.setattr("ddib_fed.node.interceptors.time_entry", lambda now: ("another", "x"))
    assert doctor(north.profile_path) == 0
    assert "does not say its time" in capsys.readouterr().out


def test_no_profile_is_the_first_step(tmp_path, capsys):
    """As JSON: one step that is not well."""
    assert run(["doctor", "--format", "json", "--profile", str(tmp_path / "none.toml")]) == ExitCode.NOT_FOUND
    steps = json.loads(capsys.readouterr().out)
    assert [(step["step"], step["ok"]) for step in steps] == [("profile", False)]

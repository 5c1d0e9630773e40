"""`ddib doctor` names the cause at the first step that fails."""

from __future__ import annotations

import json

import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode, NotReady, Unauthenticated
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


@pytest.mark.parametrize("kind", [Unauthenticated, NotReady])
def test_what_the_node_refuses_does_not_lead_back_to_the_doctor(north, capsys, kind):
    """The last step that it has: somebody else knows more."""
    north.script.refuse["ListDomains"] = kind()
    assert doctor(north.profile_path) == kind.exit_code
    hint = capsys.readouterr().err.partition("try: ")[2]
    assert hint
    assert "ddib doctor" not in hint
    assert "operator" in hint


def test_no_profile_is_the_first_step(tmp_path, capsys):
    """As JSON: one step that is not well."""
    assert run(["doctor", "--format", "json", "--profile", str(tmp_path / "none.toml")]) == ExitCode.NOT_FOUND
    steps = json.loads(capsys.readouterr().out)
    assert [(step["step"], step["ok"]) for step in steps] == [("profile", False)]

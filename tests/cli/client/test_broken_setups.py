"""Each broken set-up is named, by `ddib doctor` and by every other command of a client."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.client import connection
from tests.cli.client.broken_setups import SETUPS


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_CONTACT_S", 0.2)


def named(arguments: list[str], profile, says: str, capsys) -> None:
    """The command fails, says what is wrong, where, and what to do."""
    assert run([*arguments, "--profile", str(profile)]) != 0
    lines = capsys.readouterr().err.splitlines()
    error = next(line for line in lines if line.startswith("error: "))
    tried = next(line for line in lines if line.startswith("  try:"))
    assert says in error + tried, (arguments, lines)
    assert any(line.startswith("  at:   ") for line in lines) or "leaf.key" in error


@pytest.mark.parametrize("name", SETUPS)
def test_doctor_names_the_cause_of_each_broken_set_up(name, tmp_path, capsys) -> None:
    """At the step that it is about; the steps before it are well."""
    setup = SETUPS[name]
    with setup.made(tmp_path) as profile:
        assert run(["doctor", "--profile", str(profile)]) != 0
        shown = capsys.readouterr()
        assert shown.out.splitlines()[-1].split() == ["FAIL", setup.step]
        assert all(line.startswith("ok ") for line in shown.out.splitlines()[:-1])
        assert setup.says in shown.err, shown.err
        assert "  try:  " in shown.err


@pytest.mark.parametrize("name", ["proxy-407", "impostor", "expired", "refused"])
def test_every_command_names_the_cause_of_a_failed_connection(name, tmp_path, capsys) -> None:
    """The same causes as `ddib doctor`, without running it."""
    scan = tmp_path / "scan.npy"
    np.save(scan, np.zeros((4, 2), np.float32))
    target = ["--to", "south.example/checkerboards", "--out", str(tmp_path / "out")]
    commands = [["domains"], ["translate", str(scan), *target], ["job", "list"], ["job", "watch", "0123"]]
    with SETUPS[name].made(tmp_path / "world") as profile:
        for arguments in commands:
            named(arguments, profile, SETUPS[name].says, capsys)


def test_a_wrong_certificate_is_named_without_waiting(tmp_path, capsys, monkeypatch) -> None:
    """It does not go away by itself: the first try is the last, however patient the client is."""
    monkeypatch.setattr(connection, "FIRST_CONTACT_S", 60.0)
    with SETUPS["impostor"].made(tmp_path) as profile:
        named(["domains"], profile, "[wrong-root]", capsys)


def test_a_refusal_because_of_a_clock_says_so(tmp_path, capsys) -> None:
    """What a node refuses by its clock, it refuses with its time."""
    from ddib_fed.errors import Unauthenticated
    from tests.client.scripted_source import SourceNodeDouble

    node = SourceNodeDouble(tmp_path)
    node.ahead_s = -10_800.0
    node.script.refuse["ListJobs"] = Unauthenticated()
    try:
        named(
            ["job", "list"], node.profile_path, "that node's clock is 3 hours behind this machine's", capsys
        )
    finally:
        node.stop()

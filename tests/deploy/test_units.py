"""The systemd units run commands that exist, give up privileges, and leave the node what it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddib_fed.cli.main import cli
from ddib_fed.node.command import node_command
from ddib_fed.node.config import LimitsSection
from ddib_fed.node.connections import WANTED_FILES

FOLDER = Path(__file__).parents[2] / "docs" / "deploy" / "systemd"
SERVICES = sorted(path.name for path in FOLDER.glob("*.service"))
ANALYZE = shutil.which("systemd-analyze")
# Of 10; what is left is the network, torch's code at run time, and the machine's devices of random numbers and time.
MOST_EXPOSED = {"ddib-node@.service": 1.5, "ddib-relay@.service": 1.5}


def settings(name: str) -> dict[str, list[str]]:
    """The values of each setting; lines that end with a backslash go on."""
    found: dict[str, list[str]] = {}
    text = (FOLDER / name).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value.strip())
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_every_unit_gives_up_what_it_does_not_need(name: str) -> None:
    """No capability, no new privileges, a read-only system, a user of its own."""
    found = settings(name)
    assert found["CapabilityBoundingSet"] == [""]
    for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces", "LockPersonality"):
        assert found[key] == ["yes"], key
    assert found["ProtectSystem"] == ["strict"]
    assert found["UMask"] == ["0077"]
    assert found.get("User") == ["ddib"] or found["DynamicUser"] == ["yes"]


def test_the_node_gets_its_files_and_its_time() -> None:
    """As many open files as it wants, longer to stop than it drains, its own folder to write."""
    found = settings("ddib-node@.service")
    assert int(found["LimitNOFILE"][0]) >= WANTED_FILES
    assert float(found["TimeoutStopSec"][0]) > LimitsSection().drain_s
    assert found["StateDirectory"] == ["ddib/%i"]
    # torch needs both: see the comments in the unit.
    assert "MemoryDenyWriteExecute" not in found
    assert "ProcSubset" not in found
    assert "@system-service" in found["SystemCallFilter"][0]


def test_the_commands_are_commands() -> None:
    """`serve` of the module and `reload` of ddib, with the options that they have."""
    node = settings("ddib-node@.service")
    assert "-m ddib_fed.node serve --config" in node["ExecStart"][0]
    assert "--config" in CliRunner().invoke(node_command(None), ["serve", "--help"]).output
    words = re.search(r"/ddib reload (.*)", node["ExecReload"][0])
    assert words
    shown = CliRunner().invoke(cli, ["reload", "--help"]).output
    assert all(option in shown for option in re.findall(r"--[a-z-]+", words[1]))


@pytest.mark.slow
@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", SERVICES)
def test_systemd_reads_the_unit_and_finds_it_closed(name: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent, and `security` finds little exposed."""
    text = (FOLDER / name).read_text()
    text = re.sub(r"/opt/ddib/bin/\w+|/usr/bin/ssh", "/bin/true", text)  # which are not on this machine
    unit = tmp_path / name.replace("@", "@north")
    unit.write_text(text)
    (tmp_path / name).write_text(text)
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = subprocess.run(
        [ANALYZE, "security", "--offline=yes", "--no-pager", unit], capture_output=True, text=True, check=True
    ).stdout
    exposure = float(re.search(r"Overall exposure level for \S+ ([0-9.]+)", shown)[1])
    assert exposure <= MOST_EXPOSED[name]

"""The README's own commands, from two empty folders to a translation: what a stranger would type, and nothing else.

With FULL_TRAINING=1 in the environment each node trains as long as the README says; without it, for a few steps.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.harness import Node, find_any, free_port, moons, raw_windows, weight_windows

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

README = Path(__file__).parents[2] / "README.md"
SCRIPTS = Path(sys.executable).parent
FULL = os.environ.get("FULL_TRAINING") == "1"


def commands() -> list[tuple[str, str]]:
    """(who, command) for every line `who$ command` of the README, with continuation lines joined."""
    text = README.read_text().replace("\\\n", " ")
    found = re.findall(r"^(north|south|alice)\$ (.+)$", text, re.MULTILINE)
    return [(who, re.sub(r"\s+#.*$", "", command)) for who, command in found]


class Stranger:
    """Somebody at each institution who types what the README says, each in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"7441": str(free_port()), "7442": str(free_port())}
        self.nodes: dict[str, Node] = {}
        self.fingerprints: dict[str, str] = {}
        self.copied: list[str] = []
        for who in ("north", "south"):
            (folder / who).mkdir()

    def machine(self, who: str) -> Path:
        """Alice's laptop shares north's folder for the test; south's machine is another."""
        return self.folder / ("south" if who == "south" else "north")

    def type(self, who: str, line: str) -> None:
        for old, new in self.ports.items():
            line = line.replace(old, new)
        for command in line.split(" && "):
            self._run(who, shlex.split(command))

    def _run(self, who: str, command: list[str]) -> None:
        if command[-3] == "serve":
            role = command[0].split("-")[1]
            node = Node(self.machine(who) / who, role, f"{who}.example", 0)
            self.nodes[who] = node.start(wait=False)
            return
        if command[:3] == ["ddib", "peer", "add"]:
            other = command[3].removesuffix(".peer")
            shutil.copy(self.machine(other) / command[3], self.machine(who) / command[3])
            self.copied.append(command[3])
            command += ["--fingerprint", self.fingerprints[other]]
        shown = self._execute(who, command)
        if command[:3] == ["ddib", "peer", "export"]:
            self.fingerprints[who] = next(word for word in shown.split() if word.startswith("SHA256:"))
        if command[:3] == ["ddib", "init", "node"] and not FULL:
            config = self.machine(who) / who / "node.toml"
            config.write_text(
                re.sub(r"^# steps = \d+", "steps = 120", config.read_text(), flags=re.MULTILINE)
            )

    def _execute(self, who: str, command: list[str]) -> str:
        done = subprocess.run(
            [str(SCRIPTS / command[0]), *command[1:]],
            cwd=self.machine(who),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout + done.stderr


def test_two_institutions_from_nothing(tmp_path: Path) -> None:
    """Each trains its own model and serves it; only the peer files are copied; then alice translates and returns."""
    stranger = Stranger(tmp_path)
    np.save(tmp_path / "north" / "points.npy", moons(500))
    per_side: dict[str, int] = {"north": 0, "south": 0}
    started = time.monotonic()
    try:
        for who, command in commands():
            if who == "alice":
                for node in stranger.nodes.values():
                    node.wait_serving()
            if command.split()[1] in {"init", "peer"} and who in per_side and "client" not in command:
                per_side[who] += 1
            stranger.type(who, command)
    finally:
        for node in stranger.nodes.values():
            node.stop()
    print(f"{time.monotonic() - started:.0f} s", per_side)
    assert all(count <= 3 for count in per_side.values())
    assert sorted(stranger.copied) == ["north.peer", "south.peer"]
    out = tmp_path / "north" / "translated"
    translated, returned = np.load(out / "points.npy"), np.load(out / "points.returned.npy")
    assert translated.shape == returned.shape == (500, 2)
    check_separation(tmp_path)


def check_separation(folder: Path) -> None:
    """Neither side's folder holds the other's weights, and south's holds nothing of north's points."""
    for mine, other in (("north", "south"), ("south", "north")):
        assert not find_any(weight_windows(folder / other / other / "model"), folder / mine)
    manifest = json.loads((folder / "north" / "north" / "model" / "manifest.json").read_text())
    points = np.load(folder / "north" / "points.npy").tobytes()
    secrets = [*raw_windows(points), manifest["digest"].encode(), bytes.fromhex(manifest["digest"])]
    assert not find_any(secrets, folder / "south")

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.metrics.pictures import psnr
from ddib_fed.reports.sheets import to_pixels
from ddib_fed.samples.images import encode_png, read_image
from tests.e2e.harness import Node, find_any, free_port, moons, raw_windows, weight_windows

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

README = Path(__file__).parents[2] / "README.md"
SCRIPTS = Path(sys.executable).parent
FULL = os.environ.get("FULL_TRAINING") == "1"


@dataclass(frozen=True)
class Cast:
    """Who types: at the source, at the target, and a client of the source's."""

    source: str
    target: str
    client: str

    def commands(self) -> list[tuple[str, str]]:
        """(who, command) for every line `who$ command` of the README, with continuation lines joined."""
        text = README.read_text().replace("\\\n", " ")
        found = re.findall(rf"^({self.source}|{self.target}|{self.client})\$ (.+)$", text, re.MULTILINE)
        return [(who, re.sub(r"\s+#.*$", "", command)) for who, command in found]


POINTS = Cast("north", "south", "alice")
PICTURES = Cast("east", "west", "bob")


class Stranger:
    """Somebody at each institution who types what the README says, each in a folder of their own."""

    def __init__(self, folder: Path, cast: Cast) -> None:
        self.folder = folder
        self.cast = cast
        self.ports = {port: str(free_port()) for port in ("7441", "7442", "7443", "7444")}
        self.nodes: dict[str, Node] = {}
        self.fingerprints: dict[str, str] = {}
        self.copied: list[str] = []
        for who in (cast.source, cast.target):
            (folder / who).mkdir()

    def machine(self, who: str) -> Path:
        """The client's laptop shares the source's folder for the test; the target's machine is another."""
        return self.folder / (who if who == self.cast.target else self.cast.source)

    def follow(self) -> None:
        """Type everything, in order; the client waits until both nodes serve. Then the nodes are stopped."""
        try:
            for who, command in self.cast.commands():
                if who == self.cast.client:
                    for node in self.nodes.values():
                        node.wait_serving()
                self.type(who, command)
        finally:
            for node in self.nodes.values():
                node.stop()

    def type(self, who: str, line: str) -> None:
        for old, new in self.ports.items():
            line = line.replace(old, new)
        for command in line.split(" && "):
            self._run(who, self._expanded(who, command))

    def _expanded(self, who: str, command: str) -> list[str]:
        """Words as the shell makes them: what `$(python ...)` prints, and the files of a `*`."""
        for inner in re.findall(r"\$\((.+)\)", command):
            printed = self._execute(who, shlex.split(inner)).strip()
            command = command.replace(f"$({inner})", printed)
        found = []
        for word in shlex.split(command):
            matches = sorted(self.machine(who).glob(word)) if "*" in word else [word]
            assert matches, word
            found += map(str, matches)
        return found

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
            [str(program if (program := SCRIPTS / command[0]).exists() else command[0]), *command[1:]],
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
    stranger = Stranger(tmp_path, POINTS)
    np.save(tmp_path / "north" / "points.npy", moons(500))
    typed = [(who, command.split()[:3]) for who, command in POINTS.commands()]
    per_side = {
        side: sum(
            who == side and words[1] in {"init", "peer"} and words[2] != "client" for who, words in typed
        )
        for side in ("north", "south")
    }
    assert all(count <= 3 for count in per_side.values())
    started = time.monotonic()
    stranger.follow()
    print(f"{time.monotonic() - started:.0f} s", per_side)
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


def test_pictures_between_two_institutions(tmp_path: Path) -> None:
    """With the models that ship: only the peer files are copied; of each picture bob has a translation and a return."""
    stranger = Stranger(tmp_path, PICTURES)
    scans = tmp_path / "east" / "scans"
    scans.mkdir()
    pictures = to_pixels(load_shipped("satellite").test[100:103])
    for number, pixels in enumerate(pictures):
        (scans / f"land{number}.png").write_bytes(encode_png(pixels))
    stranger.follow()
    assert sorted(stranger.copied) == ["east.peer", "west.peer"]
    out = tmp_path / "east" / "relief"
    for number, pixels in enumerate(pictures):
        record = json.loads((out / f"land{number}.json").read_text())
        assert record["input"] == f"land{number}.png"
        assert record["target_domain"] == "relief"
        translated, returned = (
            read_image(out / f"land{number}{part}.png").pixels for part in ("", ".returned")
        )
        assert translated.shape == returned.shape == pixels.shape
        assert not np.array_equal(translated, pixels)
        assert psnr(unit(returned), unit(pixels))[0] == pytest.approx(
            record["picture"]["cycle_psnr"], abs=0.2
        )
    for mine, other in (("east", "west"), ("west", "east")):
        assert not find_any(weight_windows(tmp_path / other / other / "model"), tmp_path / mine)


def unit(pixels: np.ndarray) -> np.ndarray:
    return np.float32(pixels.transpose(2, 0, 1)[None] / 127.5 - 1.0)

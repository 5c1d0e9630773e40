"""Certificates of every node and client are renewed under load, and a root is replaced: no call fails."""

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.errors import DdibError
from ddib_fed.files import write_file
from ddib_fed.models.bundle import save_bundle
from ddib_fed.record import Settings
from ddib_fed.security import pki
from ddib_fed.security.pki import fingerprint, parse_certificates
from ddib_fed.testing import NodeProcess, ddib
from tests.audit_rows import records
from tests.chaos import short_lives
from tests.e2e.harness import lone_node
from tests.e2e.processes import PLANT
from tests.node.tiny_nodes import manifest, npy, state

pytestmark = [pytest.mark.e2e, pytest.mark.promise("rotation"), pytest.mark.timeout(1_800)]

SHORT_LIFE_S, SHORT_RUN_S = 14.0, 30.0
LONG_LIFE_S, LONG_RUN_S = 60.0, 600.0


class Rotating:
    """North and west with their own roots; south's target renews through south's issuer."""

    def __init__(self, folder: Path, life_s: float) -> None:
        self.life_s = life_s
        self.folder = folder
        save_bundle(folder / "tiny", manifest(), state())
        self.north = self._node("north", "source", "north.example")
        self.issuer = self._node("south-issuer", "target", "south.example")
        self.south = self._node("south", "target", "south.example", name="node-2")
        self.west = self._node("west", "target", "west.example")
        self._enrol_south()
        for target in (self.south, self.west):
            self.north.admit(target)
            target.admit(self.north)
        for node in self.nodes:
            self._live_shortly(node)

    @property
    def nodes(self) -> tuple[NodeProcess, ...]:
        return (self.north, self.issuer, self.south, self.west)

    @property
    def profile(self) -> Path:
        return self.north.folder / "client" / "client.toml"

    def _node(self, folder: str, role: str, institution: str, **changes: str) -> NodeProcess:
        node = lone_node(self.folder / folder, institution, role, self.folder / "tiny")
        node.configure(changes)
        return node

    def _enrol_south(self) -> None:
        """south's node-2 has no root of its own: its request is signed by the issuer, where it renews from now on."""
        folder = self.south.config.paths.pki
        for file in folder.iterdir():
            file.unlink()
        request, answer = self.folder / "node-2.csr", self.folder / "node-2.pem"
        ddib("pki", "request", "--config", self.south.config_path, "--out", request)
        ddib("pki", "issue", request, "--yes", "--config", self.issuer.config_path, "--out", answer)
        ddib("pki", "install", answer, "--config", self.south.config_path)
        self.south.configure({"issuer": f"node-1@localhost:{self.issuer.port}"})

    def _live_shortly(self, node: NodeProcess) -> None:
        if self.life_s >= LONG_LIFE_S:
            node.configure({"node_life_s": self.life_s, "client_life_s": self.life_s})
        else:
            node.environment = {PLANT: short_lives.PLANTED, short_lives.LIFE: str(self.life_s)}

    def start(self) -> None:
        """Start every node; those that issue for themselves, and the client, with certificates that live shortly."""
        self.issuer.start()  # where south renews as soon as it is there
        for node in (self.north, self.issuer, self.west):
            self._issue(node.config.paths.pki, node.config.paths.pki, "node", "node-1")
        for node in (self.south, self.west, self.north):
            node.start(wait=False)
        for node in self.nodes:
            node.wait_serving()
        self._issue(
            self.north.config.paths.pki, self.profile.parent / "pki", "client", Profile.load(self.profile).name,
        )  # fmt: skip

    def _issue(self, root: Path, folder: Path, kind: Literal["node", "client"], name: str) -> None:
        life = timedelta(seconds=self.life_s)
        pki.issue_to_folder(pki.load_authority(root), folder, kind, name, lifetime=life)


class Load:
    """A client that translates one file after another to both targets; every error of a call counts."""

    def __init__(self, profile: Path) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self.waits: list[str] = []
        self._profile = profile
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with Client(
            Profile.load(self._profile), on_wait=lambda error, _s: self.waits.append(error.reason)
        ) as client:
            while not self._stop.is_set():
                target = ("south.example/moons", "west.example/moons")[self.calls % 2]
                try:
                    assert [
                        *client.translate([npy(40, self.calls)] * 2, target, Request(Settings(evaluations=8)))
                    ]
                except DdibError as error:
                    self.failed.append(f"{error.reason}: {error.detail}")
                self.calls += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def rotating(tmp_path: Path, amount) -> Iterator[Rotating]:
    made = Rotating(tmp_path, float(amount(int(SHORT_LIFE_S), int(LONG_LIFE_S))))
    with contextlib.ExitStack() as stack:
        for node in made.nodes:
            stack.callback(node.kill)
        made.start()
        yield made


def leaves(rotating: Rotating) -> dict[str, str]:
    """The fingerprint of each leaf that there is now."""
    folders = {node.folder.name: node.config.paths.pki for node in rotating.nodes}
    folders["client"] = rotating.profile.parent / "pki"
    found = {}
    for name, folder in folders.items():
        with contextlib.suppress(OSError, DdibError):  # being exchanged
            found[name] = fingerprint(parse_certificates((folder / "leaf.pem").read_bytes(), name)[0])
    return found


def roll_over(rotating: Rotating, step: str) -> None:
    """A step of north's new root: trust both, issue from the new one, trust it alone; the peers get what is trusted."""
    folder, new = rotating.north.config.paths.pki, rotating.folder / "new-root"
    if step == "start":
        pki.create_institution(new, "north.example")
        roots = (folder / "roots.pem").read_bytes() + (new / "roots.pem").read_bytes()
    elif step == "switch":
        for name in ("ca.key", "ca.pem"):
            write_file(folder / name, (new / name).read_bytes(), private=True)
        return
    else:
        roots = (new / "roots.pem").read_bytes()
    write_file(folder / "roots.pem", roots, private=True)
    file = rotating.folder / f"north-{step}.peer"
    shown = ddib("peer", "export", "--config", rotating.north.config_path, "--out", file)
    prints = [word for word in shown.split() if word.startswith("SHA256:")]
    for target in (rotating.south, rotating.west):
        options = [part for text in prints for part in ("--fingerprint", text)]
        ddib("peer", "add", file, "--force", "--config", target.config_path, *options)


def test_certificates_and_a_root_are_replaced_under_load(rotating: Rotating, amount, evidence) -> None:
    """Own root and issuer, servers and clients, and a new root, under load: no call of the client fails."""
    run_s = float(amount(int(SHORT_RUN_S), int(LONG_RUN_S)))
    seen: dict[str, set[str]] = {}
    load, begun = Load(rotating.profile), time.monotonic()
    steps = {0.2: "start", 0.4: "switch", 0.85: "finish"}
    try:
        pause = threading.Event()
        while (part := (time.monotonic() - begun) / run_s) < 1.0:
            for due in [due for due in steps if due <= part]:
                roll_over(rotating, steps.pop(due))
            for name, leaf in leaves(rotating).items():
                seen.setdefault(name, set()).add(leaf)
            pause.wait(0.2)
    finally:
        load.stop()
    assert load.failed == []
    assert load.calls > 10
    assert not steps
    renewals = {name: len(found) - 1 for name, found in seen.items()}
    assert min(renewals.values()) >= 1, renewals
    assert not records(rotating.north.config.paths.store, "job_failed")
    evidence.cases(load.calls, len(load.failed))
    evidence.figure(
        f"{load.calls} translations in {run_s:.0f} s with lives of {rotating.life_s:.0f} s, 0 failed; "
        f"{len(load.waits)} calls were tried again; renewals {renewals}"
    )

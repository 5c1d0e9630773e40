"""Set-ups in which a client cannot use its node, each named by `ddib doctor` and by every other command."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.client import connection
from ddib_fed.errors import ExitCode, NotReady, Unauthenticated
from ddib_fed.security import pki
from ddib_fed.security.pki import Authority, certificate_pem
from tests.cli.client.answers import Answer, listening, tls
from tests.client.scripted_source import NORTH, SourceNodeDouble
from tests.node.institutions import Institution
from tests.security.connect_proxy import proxying

NOW = datetime.now(UTC)


class World:
    """North's source node, and Alice's profile for it, before something is broken."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.node = SourceNodeDouble(folder)
        stack.callback(self.node.stop)
        self.profile = self.node.profile_path

    @property
    def client_pki(self) -> Path:
        return self.profile.parent / "pki"

    @property
    def authority(self) -> Authority:
        return pki.load_authority(self.node.pki)

    def dial(self, address: str) -> None:
        text = self.profile.read_text()
        self.profile.write_text(text.replace(f"localhost:{self.node.port}", address))

    def in_its_place(self, answer: Answer) -> None:
        self.dial(self._stack.enter_context(listening(answer)))

    def expire(self) -> None:
        self.node.stop()
        pki.issue_to_folder(self.authority, self.node.pki, "node", "node-1", now=NOW - timedelta(days=3))
        self.node.start()

    def expire_own(self) -> None:
        pki.issue_to_folder(self.authority, self.client_pki, "client", "alice", now=NOW - timedelta(days=40))

    def rename_profile(self) -> None:
        self.profile.write_text(self.profile.read_text().replace('"alice"', '"bob"'))

    def stranger(self, institution: str) -> Institution:
        return Institution(institution, self.folder / "stranger")


def _impostor(world: World) -> None:
    folder = world.stranger(NORTH).pki
    world.in_its_place(tls(folder / "leaf.pem", folder / "leaf.key"))


def _refused(world: World) -> None:
    world.node.stop()
    world.node.client_roots_pem = certificate_pem(world.stranger("west.example").root)
    world.node.start()


def _through(world: World, address: str) -> None:
    world.profile.write_text(f'{world.profile.read_text()}\nproxy = "http://{address}"\n')


def _proxy(answer: str) -> Callable[[World], None]:
    return lambda world: _through(world, world._stack.enter_context(proxying(answer=answer)).address)


@dataclass(frozen=True)
class Setup:
    """One broken set-up."""

    break_it: Callable[[World], None]
    step: str
    says: str

    @contextmanager
    def made(self, folder: Path) -> Iterator[Path]:
        """The profile of a client in this set-up."""
        with ExitStack() as stack:
            world = World(folder, stack)
            self.break_it(world)
            yield world.profile


SETUPS = {
    "nothing-listens": Setup(lambda world: world.node.stop(), "connection", "[nothing-listens]"),
    "proxy-407": Setup(_proxy("407 Proxy Authentication Required"), "connection", "[proxy-refused]"),
    "impostor": Setup(_impostor, "connection", "[wrong-root]"),
    "expired": Setup(World.expire, "connection", "[not-valid]"),
    "own-expired": Setup(World.expire_own, "certificate", "[own-certificate]"),
    "refused": Setup(_refused, "connection", "[refused-us]"),
    "other-profile": Setup(World.rename_profile, "certificate", "client/alice"),
    "loading": Setup(
        lambda world: world.node.script.refuse.update(ListDomains=NotReady()), "service", "[NOT_READY]"
    ),
    "clock": Setup(
        lambda world: setattr(world.node, "ahead_s", 3600.0), "clock", "60 minutes ahead of this machine's"
    ),
}
"""By a short name."""


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


@pytest.mark.parametrize("name", ["proxy-407", "impostor"])
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


def doctor(profile) -> int:
    return run(["doctor", "--profile", str(profile)])


def test_all_is_well(north, capsys):
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
    assert run(["doctor", "--format", "json", "--profile", str(tmp_path / "none.toml")]) == ExitCode.NOT_FOUND
    steps = json.loads(capsys.readouterr().out)
    assert [(step["step"], step["ok"]) for step in steps] == [("profile", False)]

"""Set-ups in which a client cannot use its source node, each broken in one way, with real sockets and certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ddib_fed.errors import NotReady
from ddib_fed.security import pki
from ddib_fed.security.pki import Authority, certificate_pem
from tests.cli.client.answers import (
    Answer,
    listening,
    tls,
)
from tests.client.scripted_source import NORTH, SourceNodeDouble
from tests.node.institutions import Institution
from tests.security.connect_proxy import proxying

NOW = datetime.now(UTC)
OLD = timedelta(days=40)
SOON = timedelta(hours=2)


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

    def restart(self, *, made: datetime | None = None, name: str = "node-1") -> None:
        self.node.stop()
        pki.issue_to_folder(self.authority, self.node.pki, "node", name, now=made)
        self.node.start()

    def stranger(self, institution: str = NORTH) -> Institution:
        return Institution(institution, self.folder / "stranger")


def _nothing_listens(world: World) -> None:
    world.node.stop()


def _impostor(world: World) -> None:
    folder = world.stranger().pki
    world.in_its_place(tls(folder / "leaf.pem", folder / "leaf.key"))


def _expired(world: World) -> None:
    world.restart(made=NOW - timedelta(days=3))


def _own_expired(world: World) -> None:
    pki.issue_to_folder(world.authority, world.client_pki, "client", "alice", now=NOW - OLD)


def _refused(world: World) -> None:
    world.node.stop()
    world.node.client_roots_pem = certificate_pem(world.stranger("west.example").root)
    world.node.start()


def _somebody_elses_profile(world: World) -> None:
    world.profile.write_text(world.profile.read_text().replace('"alice"', '"bob"'))


def _clock(world: World) -> None:
    world.node.ahead_s = 3600.0


def _through(world: World, address: str) -> None:
    world.profile.write_text(f'{world.profile.read_text()}\nproxy = "http://{address}"\n')


def _proxy(answer: str) -> Callable[[World], None]:
    return lambda world: _through(world, world._stack.enter_context(proxying(answer=answer)).address)


def _loading(world: World) -> None:
    world.node.script.refuse["ListDomains"] = NotReady()


@dataclass(frozen=True)
class Setup:
    """One broken set-up."""

    break_it: Callable[[World], None]
    step: str
    says: str
    passing: bool = False

    @contextmanager
    def made(self, folder: Path) -> Iterator[Path]:
        """The profile of a client in this set-up."""
        with ExitStack() as stack:
            world = World(folder, stack)
            self.break_it(world)
            yield world.profile


SETUPS = {
    "nothing-listens": Setup(_nothing_listens, "connection", "[nothing-listens]", True),
    "proxy-407": Setup(_proxy("407 Proxy Authentication Required"), "connection", "[proxy-refused]"),
    "impostor": Setup(_impostor, "connection", "[wrong-root]"),
    "expired": Setup(_expired, "connection", "[not-valid]"),
    "own-expired": Setup(_own_expired, "certificate", "[own-certificate]"),
    "refused": Setup(_refused, "connection", "[refused-us]"),
    "other-profile": Setup(_somebody_elses_profile, "certificate", "client/alice"),
    "loading": Setup(_loading, "service", "[NOT_READY]"),
    "clock": Setup(_clock, "clock", "60 minutes ahead of this machine's"),
}
"""By a short name."""

"""A source node in a folder, and ways to spoil its set-up: which step must find each, and what it says."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ddib_fed.node.config import NodeConfig
from ddib_fed.security import pki
from ddib_fed.security.peers import begin_node
from ddib_fed.security.pki import ROOT_LIFETIME, issue_leaf, new_key
from tests.e2e.harness import free_port
from tests.node.running.test_daemon import ready


class Node:
    """North's source node in a folder, which a test spoils."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ready(folder, "north.example", "source")
        self.held: list[object] = []

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def config(self) -> NodeConfig:
        return NodeConfig.load(self.folder / "node.toml")

    def edit(self, old: str, new: str) -> None:
        path = self.folder / "node.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def listening(self) -> str:
        """An address that another process has."""
        taken = socket.socket()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        self.held.append(taken)
        return f"127.0.0.1:{taken.getsockname()[1]}"

    def leaf(self, start_h: float, *, issues: bool) -> None:
        """A certificate of 24 hours that begins then; without the root's key when it does not issue."""
        authority, key = pki.load_authority(self.pki), new_key()
        begins = datetime.now(UTC) + timedelta(hours=start_h)
        made = issue_leaf(authority, "node", "node-1", public_key=key.public_key(), now=begins)
        pki.write_identity(self.pki, certificate=made, key=key, roots=(authority.certificate,))
        if not issues:
            for name in ("ca.key", "ca.pem"):
                (self.pki / name).unlink()

    def root(self, days: float) -> None:
        """A root that ends in so many days, and the certificate that it signed before."""
        for name in ("ca.key", "ca.pem", "roots.pem"):
            (self.pki / name).unlink()
        ends = datetime.now(UTC) + timedelta(days=days)
        authority = pki.create_institution(self.pki, "north.example", now=ends - ROOT_LIFETIME)
        pki.issue_to_folder(
            authority, self.pki, "node", "node-1", now=min(datetime.now(UTC), ends - timedelta(1))
        )

    def tree(self) -> list[tuple[str, int, int]]:
        return sorted((str(p), p.lstat().st_mode, p.lstat().st_size) for p in self.folder.rglob("*"))


def other_domain(node: Node) -> None:
    node.edit('domain = "moons"                #', 'domain = "checkerboards"     #')


def folder_for(name: str):
    def put(node: Node) -> None:
        (node.folder / name).unlink(missing_ok=True)
        (node.folder / name).mkdir(parents=True)

    return put


def mode(name: str, bits: int):
    def put(node: Node) -> None:
        (node.folder / name).mkdir(exist_ok=True)
        (node.folder / name).chmod(bits)

    return put


def damaged_database(node: Node) -> None:
    (node.state / "node.sqlite").write_bytes(b"garbage " * 999)


def newer_database(node: Node) -> None:
    with sqlite3.connect(node.state / "node.sqlite") as made:
        made.execute("PRAGMA user_version = 99")
    made.close()


def others_key(name: str):
    def put(node: Node) -> None:
        elsewhere = node.folder.parent / "elsewhere"
        begin_node(elsewhere, "north.example", "node-1")
        shutil.copy(elsewhere / "pki" / name, node.pki / name)

    return put


def without(*names: str):
    def put(node: Node) -> None:
        for name in names:
            (node.pki / name).unlink()

    return put


def http(listen: str):
    return lambda node: node.edit('# listen = "127.0.0.1:9464"', f'listen = "{listen}"')


def one_port_for_both(node: Node) -> None:
    address = f"127.0.0.1:{free_port()}"
    node.edit("127.0.0.1:0", address)
    http(address)(node)


def classified(folder: str):
    return lambda node: node.edit('# classifier = "classifier"', f'classifier = "{folder}"')


WRONG = {
    "no classifier there": (classified("nowhere"), "model", "nowhere"),
    "bundle of another domain": (other_domain, "model", "bundle_domain"),
    "port in use": (lambda n: n.edit("127.0.0.1:0", n.listening()), "listen", "ss -ltnp"),
    "state 0777": (mode("state", 0o777), "state", "chmod 700"),
    "spool 0777": (mode("state/spool", 0o777), "roles", "chmod 700"),
    "damaged database": (damaged_database, "store", "node.sqlite cannot be used"),
    "newer database": (newer_database, "store", "another release"),
    "no certificate": (without("leaf.pem", "ca.key", "ca.pem"), "identity", "leaf.pem"),
    "another root's key": (others_key("ca.key"), "identity", "is not the key of ca.pem"),
    "expired": (lambda n: n.leaf(-48, issues=False), "identity", "expired"),
    "another name": (lambda n: n.edit('name = "node-1"', 'name = "node-2"'), "identity", "node-2"),
    "trust": (lambda n: (n.state / "trust.json").write_text("{"), "peers", "trust.json cannot be used"),
    "http on the node's port": (one_port_for_both, "http", "both port"),
    "socket is a folder": (folder_for("state/admin.sock"), "operator", "is no socket"),
}  # fmt: skip

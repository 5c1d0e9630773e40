"""Sets up two institutions in a folder with the README's own commands, and runs their nodes as processes."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddib_fed.cli.main import cli
from ddib_fed.errors import InternalError, NotReady, UnavailableError
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.running.admin import AdminClient

START_S = 120.0
STOP_S = 15.0
LOG_TAIL = 20

Show = Callable[[str], None]


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of loopback that are free now; all are held until all are found, so no two are the same."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
    return tuple(ports)


def run_command(show: Show, *words: str | Path) -> str:
    """Run a `ddib` command in this process, as typed; returns its output."""
    show("ddib " + " ".join(str(word) for word in words))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(args=[str(word) for word in words], prog_name="ddib", standalone_mode=False)
    return printed.getvalue()


@dataclass(slots=True)
class Institution:
    """One institution: its folder with node.toml and model, and its node's process while it runs."""

    name: str
    role: str
    domain: str
    folder: Path
    port: int
    bundle: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def config_path(self) -> Path:
        return self.folder / "node.toml"

    @property
    def log_path(self) -> Path:
        return self.folder / "node.log"

    def set_up(self, show: Show) -> str:
        """Make its node with a copy of the shipped model, or the given one; returns its fingerprint."""
        printed = run_command(
            show, "init", "node", "--institution", self.name, "--role", self.role, "--domain", self.domain,
            "--model", self.bundle or self.domain, "--address", f"localhost:{self.port}", "--no-client",
            "--out", self.folder,
        )  # fmt: skip
        words = [word for word in printed.split() if word.startswith("SHA256:")]
        if not words:
            raise InternalError("`ddib init node` printed no fingerprint")
        return words[0]

    def allow_calibrations(self, show: Show, kinds: Sequence[str]) -> None:
        listed = ", ".join(f'"{kind}"' for kind in kinds)
        self.configure(show, "policy", "calibration", "[]", f"[{listed}]")

    def configure(self, show: Show, section: str, key: str, default: str, value: str) -> None:
        """Replace a value of node.toml, which its node reads when it starts."""
        text, found = re.subn(
            rf"^(?:# )?{key} = {re.escape(default)}( .*)?$",
            lambda line: f"{key} = {value}{line[1] or ''}",
            self.config_path.read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
        if found != 1:
            raise InternalError(f"{self.config_path} has {found} lines {key} = {default}")
        self.config_path.write_text(text, encoding="utf-8")
        show(f"# {self.config_path}: [{section}] {key} = {value}")

    @property
    def peer_file(self) -> Path:
        return self.folder / f"{self.name}.peer"

    def admit(self, show: Show, peer_file: Path, fingerprint: str) -> None:
        """Admit the other institution."""
        run_command(
            show, "peer", "add", peer_file, "--config", self.config_path, "--fingerprint", fingerprint
        )

    def start(self, show: Show) -> None:
        """Start its node in a separate session: Ctrl-C reaches only the demo, which then stops it in order."""
        words = ["-m", f"{self.role}_node", "serve", "--config", str(self.config_path)]
        show(f"ddib-{self.role}-node serve --config {shlex.quote(str(self.config_path))} &")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Return once the node reports on its socket that it serves."""
        client, deadline = AdminClient(NodeConfig.load(self.config_path)), time.monotonic() + timeout_s
        while True:
            if self.process is not None and (code := self.process.poll()) is not None:
                raise self._not_ready(f"ended with {code}")
            with contextlib.suppress(UnavailableError):
                if client.status().state == "serving":
                    return
            if time.monotonic() > deadline:
                raise self._not_ready(f"was not ready after {timeout_s:.0f} s")
            time.sleep(0.1)

    def _not_ready(self, what: str) -> NotReady:
        lines = self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        return NotReady(
            f"the node of {self.name} {what}; the end of {self.log_path}:\n    " + "\n    ".join(lines),
            hop=f"{self.role} {self.name}",
            hint=f"ddib-{self.role}-node check --config {shlex.quote(str(self.config_path))}",
        )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if necessary."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def still_runs(config_path: Path) -> bool:
    """Whether a node of this configuration answers on its socket."""
    if not config_path.is_file():
        return False
    try:
        AdminClient(NodeConfig.load(config_path)).status()
    except UnavailableError:
        return False
    return True

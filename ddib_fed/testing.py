"""Two real nodes on this machine, for tests, demonstrations and measurements.

The commands that operators type set each node up; it runs as a process of its own, and all calls are over mutual TLS.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import ddib_fed
from ddib_fed.errors import InputError, NotReady, UnavailableError
from ddib_fed.node.config import NodeConfig, toml_text

START_S = 300.0
STOP_S = 15.0
LOG_TAIL = 20


class Process(Protocol):
    """A node's process, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


Launch = Callable[["NodeProcess", Sequence[str]], Process]
Echo = Callable[[str], None]


def _silent(line: str) -> None:
    """Show nothing of a command."""


def ddib(*words: object, echo: Echo = _silent) -> str:
    """Run a `ddib` command in this process; return what it prints on stdout, and raise its error."""
    from ddib_fed.cli.main import cli

    typed = [str(word) for word in words]
    echo(f"ddib {shlex.join(typed)}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(args=typed, prog_name="ddib", standalone_mode=False)
    return printed.getvalue()


def launch_process(node: NodeProcess, words: Sequence[str]) -> Process:
    """Start a node's command in a session of its own, which Ctrl-C does not reach; its output goes to its log."""
    with node.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", f"{node.role}_node", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **node.environment},
            start_new_session=True,
        )


@dataclass
class NodeProcess:
    """A folder with node.toml, and the process of its node while it runs.

    Parameters
    ----------
    launch
        Starts the process; gets this node and the words of its command, `serve --config FILE` and further ones.
    echo
        Called with each command, as somebody would type it.
    environment
        Variables of the process beyond those of this one.
    """

    folder: Path
    launch: Launch = launch_process
    echo: Echo = _silent
    environment: dict[str, str] = field(default_factory=dict)
    process: Process | None = None

    @property
    def config_path(self) -> Path:
        return self.folder / "node.toml"

    @property
    def node(self) -> ddib_fed.Node:
        """The node as its operator has it, by what node.toml says now."""
        return ddib_fed.Node.open(self.config_path)

    @property
    def config(self) -> NodeConfig:
        return self.node.config

    @property
    def institution(self) -> str:
        return self.config.node.institution

    @property
    def role(self) -> str:
        return self.config.node.roles[0]

    @property
    def port(self) -> int:
        return int(self.config.node.listen.rpartition(":")[2])

    @property
    def log(self) -> Path:
        """File of everything that the node has printed."""
        return self.folder / "node.log"

    def set_up(self, institution: str, role: str, model: str | Path, port: int | None = None) -> Self:
        """Write node.toml, keys and, at a source, a client; `model` and `port` are those of `TwoNodes.create`."""
        address = f"localhost:{free_port() if port is None else port}"
        ddib("init", "node", "--institution", institution, "--role", role, "--model", model, "--address", address,
             "--out", self.folder, echo=self.echo)  # fmt: skip
        return self

    def admit(self, other: NodeProcess) -> None:
        """Admit another node by its peer file and the fingerprint of its root, as both operators do."""
        file = other.folder / f"{other.institution}.peer"
        words = ("--config", other.config_path, "--out", file, "--force")
        printed = ddib("peer", "export", *words, echo=self.echo)
        fingerprint = next(word for word in printed.split() if word.startswith("SHA256:"))
        ddib("peer", "add", file, "--config", self.config_path, "--fingerprint", fingerprint, echo=self.echo)

    def configure(self, settings: Mapping[str, object]) -> None:
        """Set keys of node.toml, which the node reads when it starts.

        A key that two tables have is given with its table, as `http.listen`. Raise InputError unless one table has it.
        """
        tables = re.split(r"^(?=\[)", self.config_path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name, value in settings.items():
            table, _, key = name.rpartition(".")
            line, old = f"{key} = {toml_text(value)}", re.compile(rf"^(?:# )?{key} = .*$", re.MULTILINE)
            places = [n for n, text in enumerate(tables) if text.startswith(f"[{table}") and old.search(text)]
            if len(places) != 1:
                raise InputError(f"{len(places)} tables of {self.config_path} have a key {name}")
            tables[places[0]] = old.sub(lambda _, line=line: line, tables[places[0]], count=1)
            self.echo(f"# {self.config_path}: {line}")
        self.config_path.write_text("".join(tables), encoding="utf-8")

    def start(self, *words: str, wait: bool = True) -> Self:
        """Start the node with further words of its command; with `wait`, return once it serves.

        Raise NotReady with the end of its log if it ended, or does not serve after `START_S`.
        """
        command = ["serve", "--config", str(self.config_path), *words]
        self.echo(f"ddib-{self.role}-node {shlex.join(command)} &")
        self.process = self.launch(self, command)
        if wait:
            self.wait_serving()
        return self

    def wait_serving(self) -> None:
        """Return once the node serves; raise NotReady as `start` does."""
        deadline, node = time.monotonic() + START_S, self.node  # node.toml is read once, which takes a while
        while _state(node) != "serving":
            code = None if self.process is None else self.process.poll()
            if code is not None or time.monotonic() > deadline:
                tail = "\n    ".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
                what = f"was not ready after {START_S:.0f} s" if code is None else f"ended with {code}"
                raise NotReady(
                    f"the node of {self.institution} {what}; the end of {self.log}:\n    {tail}",
                    hop=f"{self.role} {self.institution}",
                    hint=f"ddib-{self.role}-node check --config {shlex.quote(str(self.config_path))}",
                )
            time.sleep(0.05)

    def state(self) -> str:
        """Return what the node answers its operator, such as "serving"; "down" where none answers."""
        return _state(self.node)

    def stop(self, patience_s: float = STOP_S) -> int | None:
        """Let the node finish its running work, and kill it after `patience_s`; return its exit code."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=patience_s)
        return self.kill()

    def kill(self) -> int | None:
        """Kill the node if it runs; return its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()


def _state(node: ddib_fed.Node) -> str:
    try:
        return node.status().state
    except UnavailableError:
        return "down"


@dataclass
class TwoNodes:
    """A source's and a target's node that admit each other, and a client of the source.

    A context manager: both serve inside. At its end they are killed, which is quick and costs no accepted job; `stop`
    ends them in order. Each node can also be configured, started, stopped and killed by itself.

    Examples
    --------
    >>> import ddib_fed, numpy
    >>> from ddib_fed.testing import TwoNodes
    >>> numpy.save("points.npy", ddib_fed.Model.open("moons").sample(100))
    >>> with TwoNodes.create("nodes", source="moons", target="checkerboards") as nodes:
    ...     with nodes.client() as client:
    ...         (result,) = client.translate(["points.npy"], nodes.to)
    >>> result.record.samples, nodes.source.state()
    (100, 'down')
    """

    source: NodeProcess
    target: NodeProcess

    @classmethod
    def create(
        cls,
        folder: str | Path,
        source: str | Path = "moons",
        target: str | Path = "checkerboards",
        *,
        institutions: tuple[str, str] = ("north.example", "south.example"),
        settings: Mapping[str, object] | None = None,
        ports: tuple[int, int] | None = None,
        launch: Launch = launch_process,
        echo: Echo = _silent,
    ) -> Self:
        """Set up both nodes and let them admit each other; none is started.

        Parameters
        ----------
        folder
            Gets a folder for each institution, named by its first label: `north` and `south`.
        source, target
            Name of a shipped model, which is copied, or the folder of one.
        institutions, ports
            DNS names of the source's and the target's institution; ports of loopback, by default two that are free.
        settings, launch, echo
            Keys of both node.toml, as `NodeProcess.configure` takes them; as `NodeProcess` has them.

        Raises
        ------
        AlreadyExists, ModelNotFound
            A node is in one of the folders; there is no such model.
        """
        nodes = cls(
            *(NodeProcess(Path(folder) / name.partition(".")[0], launch, echo) for name in institutions)
        )
        first, second = ports or (None, None)
        nodes.source.set_up(institutions[0], "source", source, first)
        nodes.target.set_up(institutions[1], "target", target, second)
        nodes.source.admit(nodes.target)
        nodes.target.admit(nodes.source)
        for node in nodes.both:
            node.configure(settings or {})
        return nodes

    @property
    def both(self) -> tuple[NodeProcess, NodeProcess]:
        return self.source, self.target

    @property
    def to(self) -> str:
        """What the source's clients give as the target, `south.example/checkerboards`."""
        return f"{self.target.institution}/{self.target.config.model.domain}"

    @property
    def profile(self) -> Path:
        """The client.toml of the source's first client."""
        return self.source.folder / "client" / "client.toml"

    def client(self, patience_s: float = 60.0) -> ddib_fed.Client:
        """Return a client of the source, a context manager; `patience_s` as `Client` has it."""
        return ddib_fed.Client(ddib_fed.Profile.load(self.profile), patience_s=patience_s)

    def start(self) -> Self:
        """Start both nodes; return once both serve, or kill both and raise NotReady."""
        try:
            for node in self.both:
                node.start(wait=False)
            for node in self.both:
                node.wait_serving()
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Stop the source's node, then the target's, as `NodeProcess.stop` does."""
        for node in self.both:
            node.stop()

    def kill(self) -> None:
        """Kill both nodes."""
        for node in self.both:
            node.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


# Below the kernel's ephemeral ports (from 32768): no outgoing connection takes a port before a node binds it. Processes
# whose ids are near have ports of their own, so that tests can run in parallel; others seldom meet.
_FIRST, _PROCESSES, _EACH = 20_000, 60, 200
_offsets = itertools.count(random.SystemRandom().randrange(_EACH))


def free_port() -> int:
    """Return a port of loopback that is free, and that this process has not returned recently."""
    first = _FIRST + os.getpid() % _PROCESSES * _EACH
    for _ in range(_EACH):
        port = first + next(_offsets) % _EACH
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise NotReady(f"no port of {first} to {first + _EACH - 1} is free")


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used, with all its threads (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

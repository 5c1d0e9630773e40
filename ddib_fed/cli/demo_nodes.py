"""Sets up two institutions whose nodes admit one another, and translates files through them; what a part comes to.

Everything runs through the commands and the client that users have, and each command is printed so that it can be
pasted. Started nodes are always stopped.
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddib_fed.errors import CalibrationIneffective, Cancelled, InternalError, NotReady, UnavailableError
from ddib_fed.terminal import console, number, print_table, say

if TYPE_CHECKING:
    from ddib_fed.calibration.record import Calibration
    from ddib_fed.client.results import Delivered

CALIBRATION = "rotation"
"""Kind that the nodes of the pictures agree on; the demo's policies allow it, those of a real node allow none."""
START_S = 120.0
STOP_S = 15.0
LOG_TAIL = 20
DRAWS = 3
"""Of the noise of what is published for a calibration: about one in a hundred supports none."""

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure with its upper or lower bound."""

    name: str
    value: float
    bound: float
    ok: bool
    sense: Literal["at most", "at least"] = "at most"

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> Bound:
        return cls(name, value, bound, bool(value <= bound))

    @classmethod
    def at_least(cls, name: str, value: float, bound: float) -> Bound:
        return cls(name, value, bound, bool(value >= bound), "at least")


@dataclass(frozen=True, slots=True)
class DemoPart:
    """One part of the demo: its figures in the report, their bounds, and the files that it wrote."""

    name: str
    title: str
    figures: Mapping[str, Any]
    bounds: tuple[Bound, ...] = ()
    files: tuple[Path, ...] = ()

    def show(self) -> None:
        """Each figure beside its bound, and the files."""
        rows = [
            [b.name, number(b.value), f"{b.sense} {number(b.bound)}", "ok" if b.ok else "OUT OF BOUNDS"]
            for b in self.bounds
        ]
        print_table(self.title, ["figure", ">value", ">bound", ""], rows)
        say(*map(str, self.files))


def show(command: str) -> None:
    say(f"$ {command}", style="dim")


def run_command(show: Show, *words: str | Path) -> str:
    """Run a `ddib` command in this process, as typed; returns its output."""
    from ddib_fed.cli.main import cli

    show("ddib " + " ".join(str(word) for word in words))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(args=[str(word) for word in words], prog_name="ddib", standalone_mode=False)
    return printed.getvalue()


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of loopback that are free now; all are held until all are found, so no two are the same."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(int(probe.getsockname()[1]) for probe in probes)


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

    @property
    def peer_file(self) -> Path:
        return self.folder / f"{self.name}.peer"

    def set_up(self, show: Show, person: str) -> str:
        """Make its node with a copy of the shipped model, or the given one, and its client; returns its fingerprint."""
        client = ("--client", person) if self.role == "source" else ()
        printed = run_command(
            show, "init", "node", "--institution", self.name, "--role", self.role, "--domain", self.domain,
            "--model", self.bundle or self.domain, "--address", f"localhost:{self.port}", *client,
            "--out", self.folder,
        )  # fmt: skip
        return next(word for word in printed.split() if word.startswith("SHA256:"))

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

    def start(self, show: Show) -> None:
        """Start its node in a separate session: Ctrl-C reaches only the demo, which then stops it in order."""
        words = [f"{self.role}_node", "serve", "--config", str(self.config_path)]
        show(f"ddib-{self.role}-node serve --config {shlex.quote(str(self.config_path))} &")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return once the node reports on its socket that it serves."""
        from ddib_fed.node.admin import AdminClient
        from ddib_fed.node.config import NodeConfig

        client, deadline = AdminClient(NodeConfig.load(self.config_path)), time.monotonic() + START_S
        while True:
            if self.process is not None and (code := self.process.poll()) is not None:
                raise self._not_ready(f"ended with {code}")
            with contextlib.suppress(UnavailableError):
                if client.status().state == "serving":
                    return
            if time.monotonic() > deadline:
                raise self._not_ready(f"was not ready after {START_S:.0f} s")
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


@dataclass(frozen=True, slots=True)
class Pair:
    """Two institutions in one folder, and a client of the first; `settings` as `Institution.configure` has them."""

    out: Path
    source: Institution
    target: Institution
    person: str
    settings: tuple[tuple[str, str, str, str], ...] = ()

    @classmethod
    def of(
        cls,
        out: Path,
        names: tuple[str, str],
        domains: tuple[str, str],
        person: str,
        *,
        models: Mapping[str, Path] | None = None,
        settings: tuple[tuple[str, str, str, str], ...] = (),
    ) -> Pair:
        """Two institutions, not yet set up, on free ports; their folders are named by their first labels."""
        source, target = (
            Institution(name, role, domain, out / name.partition(".")[0], port, (models or {}).get(domain))
            for name, role, domain, port in zip(
                names, ("source", "target"), domains, free_ports(2), strict=True
            )
        )
        return cls(out, source, target, person, settings)

    @property
    def profile(self) -> Path:
        return self.source.folder / self.person / "client.toml"

    @property
    def to(self) -> str:
        return f"{self.target.name}/{self.target.domain}"

    def stop(self) -> None:
        for institution in (self.source, self.target):
            institution.stop()

    @contextlib.contextmanager
    def running(self, *, keep: bool = False) -> Iterator[None]:
        """Set up both nodes, let them admit each other, and serve; stop them at the end unless they are kept."""
        both = source, target = self.source, self.target
        try:
            prints = [institution.set_up(show, self.person) for institution in both]
            for here, there, fingerprint in ((source, target, prints[1]), (target, source, prints[0])):
                words = (there.peer_file, "--config", here.config_path, "--fingerprint", fingerprint)
                run_command(show, "peer", "add", *words)
            for institution in both:
                for setting in self.settings:
                    institution.configure(show, *setting)
                institution.start(show)
            with console(stderr=True).status("the nodes load and warm up their models"):
                for institution in both:
                    institution.wait_ready()
            yield
        except Cancelled as error:
            self.stop()
            raise Cancelled("interrupted; the demo's nodes are stopped", hint="ddib demo") from error
        except BaseException:
            self.stop()
            raise
        if not keep:
            self.stop()

    def say_what_to_try(self, files: str) -> None:
        """Addresses of the nodes that were kept, and commands for them."""
        for institution in (self.source, self.target):
            pid = institution.process.pid if institution.process is not None else "-"
            say(
                f"{institution.name} ({institution.role} node) listens on 127.0.0.1:{institution.port}, pid {pid}"
            )
        profile = f"--profile {shlex.quote(str(self.profile))}"
        configs = [shlex.quote(str(each.config_path)) for each in (self.source, self.target)]
        say(
            "try:",
            f"  ddib domains {profile}",
            f"  ddib translate {files} --to {self.to} --out again-{self.source.domain} --cycle {profile}",
            f"  ddib status --config {configs[0]}",
            f"  ddib drain --config {configs[0]}; ddib drain --config {configs[1]}   # stop both",
        )

    def translate(
        self, files: Sequence[Path], out: Path, *, shown: str, evaluations: int, cycle: bool = True
    ) -> list[Delivered]:
        """Translate like `ddib translate`, with --cycle --keep-latents or without both, through the client."""
        from ddib_fed.cli.progress import ConsoleProgress
        from ddib_fed.client.client import JobRequest
        from ddib_fed.client.files import find_items
        from ddib_fed.client.folder_run import FolderRun, RunOptions
        from ddib_fed.client.profile import Profile
        from ddib_fed.protocol.messages import Settings

        more = " --cycle --keep-latents" if cycle else ""
        show(f"ddib translate {shown} --to {self.to} --out {out}{more} --profile {self.profile}")
        request = JobRequest(self.to, Settings(evaluations=evaluations), cycle=cycle, keep_latent=cycle)
        options = RunOptions(Profile.load(self.profile), request, out, ConsoleProgress())
        run = FolderRun(options, find_items(files)[0])
        run.read()
        run.translate()
        run.conclude()
        return run.delivered

    def publish(self, *, again: bool = False) -> None:
        """Publish an aggregate of the target's pictures, as its operator does."""
        target, further = self.target, ("--force",) if again else ()
        words = ("--config", target.config_path, "--pictures", target.domain, "--yes", *further)
        say(*run_command(show, "calibrate", "publish", *words).splitlines())

    def calibrate(self, kind: str) -> Calibration:
        """Publish, and agree on a calibration; where the published noise does not support one, publish again."""
        for draw in range(1, DRAWS):
            self.publish(again=draw > 1)
            try:
                return self._agree(kind)
            except CalibrationIneffective as error:
                say(f"refused: {error.detail}", "the noise is drawn once more: these pictures are public")
        self.publish(again=True)
        return self._agree(kind)

    def _agree(self, kind: str) -> Calibration:
        """Calibrate the source to what the target published, and sign it at both, as their operators do."""
        from ddib_fed.calibration.signed import CalibrationStore
        from ddib_fed.node.config import NodeConfig

        source, target = self.source, self.target
        words = (
            "--peer",
            self.to,
            "--config",
            source.config_path,
            "--pictures",
            source.domain,
            "--kind",
            kind,
        )
        say(*run_command(show, "calibrate", *words, "--yes").splitlines())
        store = CalibrationStore(NodeConfig.load(source.config_path).paths.calibrations)
        places = (source.name, source.domain), (target.name, target.domain)
        for proposed in store.between(*places)[:1]:
            name = proposed.sha256.hex()[:12]
            run_command(show, "calibrate", "accept", name, "--yes", "--config", target.config_path)
            say(*run_command(show, "calibrate", "send", name, "--config", source.config_path).splitlines())
        now = datetime.now(UTC)
        found = next((each for each in store.between(*places) if each.state(now) == "active"), None)
        if found is None or found.calibration.kind != kind:
            raise InternalError("`ddib calibrate --peer` left no calibration that both have signed")
        return found.calibration


def still_runs(config_path: Path) -> bool:
    """Whether a node of this configuration answers on its socket."""
    from ddib_fed.node.admin import AdminClient
    from ddib_fed.node.config import NodeConfig

    if not config_path.is_file():
        return False
    try:
        AdminClient(NodeConfig.load(config_path)).status()
    except UnavailableError:
        return False
    return True

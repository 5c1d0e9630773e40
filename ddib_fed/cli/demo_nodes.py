"""Sets up two institutions whose nodes admit one another, and translates files through them.

Everything runs through the commands and the client that users have, and each command is printed so that it can be
pasted. Started nodes are always stopped, unless they are to be kept.
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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddib_fed.cli.main import cli
from ddib_fed.cli.output import number, print_table
from ddib_fed.errors import CalibrationIneffective, Cancelled, InternalError, NotReady, UnavailableError
from ddib_fed.files import write_json
from ddib_fed.node.admin import AdminClient
from ddib_fed.node.config import NodeConfig
from ddib_fed.terminal import console, say

if TYPE_CHECKING:
    from ddib_fed.calibration.record import Calibration
    from ddib_fed.cli.delivery import Delivered
    from ddib_fed.client.client import JobRequest


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
        """Start its node in a separate session: Ctrl-C reaches only the demo, which then stops it in request."""
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


DRAWS = 3
"""Of the noise of what is published for a calibration: about one in a hundred supports none."""


def show(command: str) -> None:
    say(f"$ {command}", style="dim")


@dataclass(frozen=True, slots=True)
class Site:
    """Description of one of the two institutions."""

    name: str
    domain: str
    bundle: Path | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two institutions in one folder, and a client of the first."""

    out: Path
    source: Institution
    target: Institution
    person: str
    calibrations: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str, str], ...] = ()
    begun: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, out: Path, source: Site, target: Site, person: str, calibrations: tuple[str, ...] = ()
    ) -> Pair:
        """Two institutions, not yet set up, on free ports; their folders are named by their first labels."""

        first, second = (
            Institution(site.name, role, site.domain, out / site.name.partition(".")[0], port, site.bundle)
            for site, role, port in zip((source, target), ("source", "target"), free_ports(2), strict=True)
        )
        return cls(out, first, second, person, calibrations)

    @property
    def institutions(self) -> tuple[Institution, Institution]:
        return self.source, self.target

    @property
    def profile(self) -> Path:
        return self.out / self.person / "client.toml"

    @property
    def to(self) -> str:
        return f"{self.target.name}/{self.target.domain}"

    def begin(self) -> None:
        self._set_up(self.begun.append)

    def stop(self) -> None:
        for institution in self.institutions:
            institution.stop()

    @contextlib.contextmanager
    def running(self, *, keep: bool) -> Iterator[None]:
        """Set up both nodes, let them admit each other, and serve; stop them at the end unless they are kept."""
        try:
            if self.begun:
                for line in self.begun:
                    show(line)
            else:
                self._set_up(show)
            with console(stderr=True).status("the nodes load and warm up their models"):
                for institution in self.institutions:
                    institution.wait_ready()
            yield
        except Cancelled as error:
            keep = False
            raise Cancelled("interrupted; the demo's nodes are stopped", hint="ddib demo") from error
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                self.stop()

    def _set_up(self, show: Callable[[str], None]) -> None:

        source, target = self.institutions
        source_print, target_print = source.set_up(show), target.set_up(show)
        source.admit(show, target.peer_file, target_print)
        target.admit(show, source.peer_file, source_print)
        for institution in self.institutions:
            if self.calibrations:
                institution.allow_calibrations(show, self.calibrations)
            for setting in self.settings:
                institution.configure(show, *setting)
            institution.start(show)
        run_command(
            show, "init", "client", "--node-config", self.source.config_path, "--name", self.person,
            "--out", self.out / self.person,
        )  # fmt: skip

    def translate(
        self, files: Sequence[Path], request: JobRequest, out: Path, *, shown: str
    ) -> list[Delivered]:
        """Translate like `ddib translate --cycle --keep-latents`, through the client."""
        from ddib_fed.cli.delivery import WriteOptions
        from ddib_fed.cli.folder_run import conclude, translate_files
        from ddib_fed.cli.folder_state import Work
        from ddib_fed.cli.inputs import Chosen
        from ddib_fed.cli.progress import JobProgress
        from ddib_fed.client.profile import Profile

        show(_command(shown, request, out, self.profile))
        work = Work(Profile.load(self.profile), request, WriteOptions(out), JobProgress())
        outcome, _ = translate_files(Chosen.files(files), work, page=False)
        conclude(outcome, work)
        return list(outcome.delivered)

    def calibrate(self, kind: str) -> Calibration:
        """Publish, and agree on a calibration; where the published noise does not support one, publish again."""
        for draw in range(1, DRAWS):
            self.publish(again=draw > 1)
            try:
                return self.agree(kind)
            except CalibrationIneffective as error:
                say(f"refused: {error.detail}", "the noise is drawn once more: these pictures are public")
        self.publish(again=True)
        return self.agree(kind)

    def publish(self, *, again: bool = False) -> None:
        """Publish an aggregate of the target's pictures, as its operator does."""

        target = self.target
        words = ("publish", "--config", target.config_path, "--pictures", target.domain, "--yes")
        further = ("--again",) if again else ()
        say(*run_command(show, "calibrate", *words, *further).splitlines())

    def agree(self, kind: str) -> Calibration:
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
            "--yes",
        )
        say(*run_command(show, "calibrate", *words).splitlines())
        store = CalibrationStore(NodeConfig.load(source.config_path).paths.calibrations)
        places = (source.name, source.domain), (target.name, target.domain)
        for proposed in store.between(*places)[:1]:
            name = proposed.sha256.hex()[:12]
            run_command(show, "calibrate", "accept", name, "--yes", "--config", target.config_path)
            signed = run_command(show, "calibrate", "send", name, "--config", source.config_path)
            say(*signed.splitlines())
        found = store.active(*places, now=datetime.now(UTC))
        if found is None or found.signed.calibration.kind != kind:
            raise InternalError("`ddib calibrate --peer` left no calibration that both have signed")
        return found.signed.calibration

    def say_how_to_go_on(self, shown: str) -> None:
        """Print addresses, and example commands for the files in `shown`."""
        for institution in self.institutions:
            pid = institution.process.pid if institution.process is not None else "-"
            say(
                f"{institution.name} ({institution.role} node) listens on 127.0.0.1:{institution.port}, pid {pid}"
            )
        profile, again = f"--profile {shlex.quote(str(self.profile))}", f"again-{self.source.domain}"
        stop = "; ".join(
            f"ddib drain --config {shlex.quote(str(institution.config_path))}"
            for institution in self.institutions
        )
        say("try:")
        say(f"  ddib domains {profile}")
        say(f"  ddib translate {shown} --to {self.to} --out {again} --evaluations 24 --cycle {profile}")
        say(f"  ddib job list {profile}")
        say(f"  ddib status --config {shlex.quote(str(self.source.config_path))}")
        say(f"  {stop}   # stop both")


def _command(shown: str, request: JobRequest, out: Path, profile: Path) -> str:
    """The settings as options; defaults are omitted."""
    from ddib_fed.protocol.messages import Settings

    words = ["ddib translate", shown, "--to", request.target]
    if request.settings.evaluations != Settings().evaluations:
        words += ["--evaluations", str(request.settings.evaluations)]
    words += ["--out", str(out)]
    words += ["--cycle"] if request.cycle else []
    words += ["--keep-latents"] if request.keep_latent else []
    return " ".join([*words, "--profile", str(profile)])


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
class Outcome:
    """One part of the demo."""

    name: str
    title: str
    figures: Mapping[str, Any]
    bounds: tuple[Bound, ...] = ()
    files: tuple[Path, ...] = ()


def write_report(path: Path, outcomes: Sequence[Outcome], seconds: float) -> None:
    """The figures and bounds of all parts as JSON."""
    report = {
        "seconds": round(seconds, 3),
        **{outcome.name: outcome.figures for outcome in outcomes},
        "bounds": [asdict(bound) for outcome in outcomes for bound in outcome.bounds],
    }
    write_json(path, report)


def print_bounds(outcome: Outcome) -> None:
    """Each figure of a part beside its bound."""
    rows = [
        [b.name, number(b.value), f"{b.sense} {number(b.bound)}", "ok" if b.ok else "OUT OF BOUNDS"]
        for b in outcome.bounds
    ]
    print_table(outcome.title, ["figure", ">value", ">bound", ""], rows)

"""`ddib demo`: institutions in a folder, real nodes, and points and then pictures there and back.

Everything runs through the commands that users have, and each is printed so that it can be pasted. Nodes that were
started are always stopped, unless they are to be kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ddib_fed
from ddib_fed.cli.options import option
from ddib_fed.errors import (
    AlreadyExists,
    Cancelled,
    InternalError,
    NotReady,
    OutOfBounds,
    StateConflict,
    UnavailableError,
)
from ddib_fed.files import write_json
from ddib_fed.terminal import NODE_EXTRA, console, say

if TYPE_CHECKING:
    from ddib_fed.calibration.record import Calibration
    from ddib_fed.cli.demo_figures import DemoPart

MARKER = ".ddib-demo"
NODES = ("north", "south", "east", "west")
MADE_HERE = (*NODES, "translated", "points.npy",
             "translation.png", "pictures", "pictures.png", "report.json")  # fmt: skip
POINTS = 10_000
PICTURES = 16
START_S = 300.0
STOP_S = 15.0
LOG_TAIL = 20
LATENT = "satellite-256-as-relief-256", "relief-256"
"""Models of latents; the first was trained on pictures mapped by the calibration that ships with it."""


def run_command(*words: str | Path) -> str:
    """Run a `ddib` command in this process, and show it; what it prints on stdout."""
    from ddib_fed.cli.main import cli

    typed = [str(word) for word in words]
    show(f"ddib {shlex.join(typed)}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(args=typed, prog_name="ddib", standalone_mode=False)
    return printed.getvalue()


def show(line: str) -> None:
    say(f"$ {line}", dim=True)


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
    model: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def domain(self) -> str:
        return self.model.partition("-as-")[0]

    @property
    def config_path(self) -> Path:
        return self.folder / "node.toml"

    def set_up(self) -> str:
        """Make its node with a copy of the shipped model; its fingerprint."""
        printed = run_command(
            "init", "node", "--institution", self.name, "--role", self.role, "--model", self.model,
            "--address", f"localhost:{self.port}", "--out", self.folder,
        )  # fmt: skip
        return next(word for word in printed.split() if word.startswith("SHA256:"))

    def configure(self, key: str, default: str, value: str) -> None:
        """Replace a value of node.toml, which its node reads when it starts."""
        text, found = re.subn(
            rf"^(?:# )?{key} = {re.escape(default)}(?= |$)",
            f"{key} = {value}",
            self.config_path.read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
        if found != 1:
            raise InternalError(f"{self.config_path} has {found} lines {key} = {default}")
        self.config_path.write_text(text, encoding="utf-8")
        show(f"# {self.config_path}: {key} = {value}")

    def start(self) -> None:
        """Start its node in a separate session: Ctrl-C reaches only the demo, which then stops it in order."""
        show(f"ddib-{self.role}-node serve --config {shlex.quote(str(self.config_path))} &")
        words = ["-P", "-m", f"{self.role}_node", "serve", "--config", str(self.config_path)]
        with (self.folder / "node.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return once the node reports on its socket that it serves."""
        deadline = time.monotonic() + START_S
        while node_state(self.config_path) != "serving":
            code = None if self.process is None else self.process.poll()
            if code is not None or time.monotonic() > deadline:
                log = self.folder / "node.log"
                tail = "\n    ".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
                what = f"was not ready after {START_S:.0f} s" if code is None else f"ended with {code}"
                raise NotReady(
                    f"the node of {self.name} {what}; the end of {log}:\n    {tail}",
                    hop=f"{self.role} {self.name}",
                    hint=f"ddib-{self.role}-node check --config {shlex.quote(str(self.config_path))}",
                )
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pair:
    """Two institutions in folders that are named by their first labels, and a client of the first."""

    def __init__(self, out: Path, names: tuple[str, str], models: tuple[str, str]) -> None:
        self.out = out
        ports = free_ports(2)
        self.source = Institution(names[0], "source", models[0], out / names[0].partition(".")[0], ports[0])
        self.target = Institution(names[1], "target", models[1], out / names[1].partition(".")[0], ports[1])
        self.both = self.source, self.target
        self.to = f"{self.target.name}/{self.target.domain}"
        self.profile = self.source.folder / "client" / "client.toml"

    def start(self, settings: Sequence[tuple[str, str, str]] = ()) -> None:
        """Set up both nodes, let them admit each other, and serve; `settings` as `configure` takes them."""
        prints = [institution.set_up() for institution in self.both]
        for here, there, fingerprint in zip(self.both, self.both[::-1], prints[::-1], strict=True):
            file = there.folder / f"{there.name}.peer"
            run_command("peer", "add", file, "--config", here.config_path, "--fingerprint", fingerprint)
        for institution in self.both:
            for setting in settings:
                institution.configure(*setting)
            institution.start()
        with console(stderr=True).status("the nodes load and warm up their models"):
            for institution in self.both:
                institution.wait_ready()

    def stop(self) -> None:
        for institution in self.both:
            institution.stop()

    def translate(self, files: Path, out: Path, *further: str) -> None:
        run_command("translate", files, "--to", self.to, "--out", out, *further, "--profile", self.profile)

    def agree(self, *words: str) -> Calibration:
        """Propose a calibration to the target; both operators sign it."""
        from ddib_fed.calibration.record import Calibration

        source, target = self.source.config_path, self.target.config_path
        words = "--peer", self.to, *words, "--yes", "--format", "json"
        found = json.loads(run_command("calibrate", *words, "--config", source))
        name = found["sha256"][:12]
        if found["state"] != "signed":
            run_command("calibrate", "accept", name, "--yes", "--config", target)
            say(*run_command("calibrate", "send", name, "--config", source).splitlines())
        return Calibration.open(self.source.folder / "state" / "calibrations" / f"{found['sha256']}.json")

    def say_what_to_try(self, files: Path) -> None:
        """Addresses of the nodes that were kept, and commands for them."""
        for each in self.both:
            say(f"{each.name} ({each.role} node) listens on 127.0.0.1:{each.port}")
        profile = f"--profile {shlex.quote(str(self.profile))}"
        drains = [f"ddib drain --config {shlex.quote(str(each.config_path))}" for each in self.both]
        say(
            "try:",
            f"  ddib domains {profile}",
            f"  ddib translate {shlex.quote(str(files))} --to {self.to} --out again-{self.source.domain} {profile}",
            f"  ddib status --config {shlex.quote(str(self.source.config_path))}",
            f"  {'; '.join(drains)}   # stop both",
        )


def node_state(config_path: Path) -> str:
    """What the node of a configuration answers on its socket; empty where none answers."""
    if not config_path.is_file():
        return ""
    try:
        return ddib_fed.Node.open(config_path).status().state
    except UnavailableError:
        return ""


@click.command()
@option(
    "--out DIR",
    "Folder for all output; the folder of an earlier demo is replaced.",
    default=Path("ddib-demo"),
)
@option("--keep", "Leave the nodes running; print their addresses and commands to try next.")
def demo(out: Path, keep: bool) -> None:
    """Two institutions on this machine translate there and back.

    First points: north.example has moons, south.example checkerboards. Then pictures of 256 pixels: east.example has
    satellite pictures, west.example relief maps, each with a model of the latents of its own autoencoder; both sign a
    calibration, and translate at the setting of its dial. Each pair is set up by the commands that the README shows;
    two nodes are started and translate over mutual TLS. Writes DIR/translation.png, DIR/pictures.png and
    DIR/report.json. Exits non-zero if a figure is out of bounds.
    """
    for package in sorted(NODE_EXTRA):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(package, name=package)
    demonstrate(out, keep=keep)


def demonstrate(out: Path, *, keep: bool = False, points: int = POINTS) -> None:
    from ddib_fed.cli import demo_figures

    started = time.perf_counter()
    prepare(out)
    with_points = Pair(out, ("north.example", "south.example"), ("moons", "checkerboards"))
    with_pictures = Pair(out, ("east.example", "west.example"), LATENT)
    # SIGTERM is treated like Ctrl-C, so that the nodes are stopped.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    cycle = ("--cycle", "--keep-latents")
    try:
        say("", "Points: moons of north.example become checkerboards of south.example, and return", "")
        with_points.start()
        sent = demo_figures.draw_points(out / "points.npy", with_points.source.domain, points)
        with_points.translate(sent, out / "translated", *cycle)
        parts = [demo_figures.measure_points(sent, out / "translated", out / "translation.png")]
        parts[0].show()
        if not keep:
            with_points.stop()
        say("", "Pictures: satellite of east.example become relief of west.example, and return", "")
        with_pictures.start([("calibration", "[]", '["colour-map"]'), ("least_share", "1.0", "0.75")])
        folder = out / "pictures"
        domains = with_pictures.source.domain, with_pictures.target.domain
        pictures = demo_figures.draw_pictures(folder / "in", *domains, PICTURES)
        calibration = with_pictures.agree("--from", with_pictures.source.model)
        with_pictures.translate(folder / "in", folder / "translated", *cycle)
        measured = demo_figures.measure_pictures(
            *pictures, folder / "translated", calibration, out / "pictures.png"
        )
        parts.append(measured)
        parts[1].show()
        finish(out / "report.json", parts, time.perf_counter() - started)
    except BaseException as error:
        with_points.stop()
        with_pictures.stop()
        if isinstance(error, Cancelled):
            raise Cancelled("interrupted; the demo's nodes are stopped", hint="ddib demo") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if keep:
        with_points.say_what_to_try(sent)
        with_pictures.say_what_to_try(folder / "in")
    else:
        with_pictures.stop()


def prepare(out: Path) -> None:
    """Make or empty the demo's folder."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise AlreadyExists(f"{out} is not empty and was not made by a demo", hint="ddib demo --out ANOTHER")
    for name in NODES:
        if node_state(config := out / name / "node.toml"):
            raise StateConflict(
                f"a node of an earlier demo still runs in {out / name}",
                hint=f"ddib drain --config {shlex.quote(str(config))}",
            )
    out.mkdir(parents=True, exist_ok=True)
    for name in MADE_HERE:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (out / MARKER).write_text("made by `ddib demo`, which empties this folder when it runs again\n")


def finish(report: Path, parts: Sequence[DemoPart], seconds: float) -> None:
    """Write the figures and bounds of all parts as JSON, and check the bounds."""
    bounds = [bound for part in parts for bound in part.bounds]
    figures: dict[str, Any] = {part.name: part.figures for part in parts}
    held = [{**asdict(bound), "ok": bound.ok} for bound in bounds]
    write_json(report, {"seconds": round(seconds, 3), **figures, "bounds": held})
    say(str(report))
    if wrong := [bound.name for bound in bounds if not bound.ok]:
        raise OutOfBounds(f"out of bounds: {', '.join(wrong)}", hint=f"see {report}")

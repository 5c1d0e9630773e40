"""`ddib demo`: two institutions in a folder, two real nodes, and 10,000 points there and back through the client."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from ddib_fed.cli.main import NODE_EXTRA
from ddib_fed.cli.output import console
from ddib_fed.errors import AlreadyExists, Cancelled, OutOfBounds, StateConflict

if TYPE_CHECKING:
    from ddib_fed.cli.delivery import Delivered
    from ddib_fed.cli.institutions import Institution

MARKER = ".ddib-demo"
MADE_HERE = ("north", "south", "alice", "translated", "points.npy", "translation.png", "report.json",
             "north.example.peer", "south.example.peer")  # fmt: skip
SOURCE_DOMAIN, TARGET_DOMAIN = "moons", "checkerboards"
STEPS = 48
SEED = 1


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("ddib-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for everything; one that an earlier demo made is made anew.",
)
@click.option(
    "--keep", is_flag=True, help="Leave the nodes running; print their addresses and what to try next."
)
@click.option(
    "--points",
    type=click.IntRange(1_000, 100_000),
    default=10_000,
    show_default=True,
    help="How many points.",
)
def demo(out: Path, keep: bool, points: int) -> None:
    """Two institutions on this machine translate there and back.

    Sets up north.example with moons and south.example with checkerboards by the same commands that the README
    shows, starts two nodes, translates over mutual TLS, prints what happened at each hop, and writes
    DIR/translation.png and DIR/report.json. Ends non-zero when a figure is out of bounds.
    """
    require_node_extra()
    started = time.perf_counter()
    prepare(out)
    demonstration = Demonstration.of(out)
    with sigterm_as_ctrl_c(), demonstration.running(keep=keep):
        delivered = demonstration.translate(points)
        finish(demonstration, delivered, started)
        if keep:
            demonstration.say_how_to_go_on()


def require_node_extra() -> None:
    """The demo runs nodes: say at once when they are not installed.

    Raises:
        ModuleNotFoundError: A package of the [node] extra is missing.
    """
    for package in sorted(NODE_EXTRA):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(package, name=package)


def prepare(out: Path) -> None:
    """An empty folder of ours.

    Raises:
        AlreadyExists: There is something that no demo made.
        StateConflict: The nodes of an earlier demo still run.
    """
    from ddib_fed.cli.institutions import still_runs

    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise AlreadyExists(f"{out} is not empty and was not made by a demo", hint="ddib demo --out ANOTHER")
    for name in ("north", "south"):
        if still_runs(config := out / name / "node.toml"):
            raise StateConflict(
                f"a node of an earlier demo still runs in {out / name}", hint=f"ddib drain --config {config}"
            )
    out.mkdir(parents=True, exist_ok=True)
    for name in MADE_HERE:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (out / MARKER).write_text("made by `ddib demo`, which empties this folder when it runs again\n")


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, so that the nodes are stopped."""

    def leave(number: int, frame: FrameType | None) -> None:
        del number, frame
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The two institutions and the folder of everything."""

    out: Path
    north: Institution
    south: Institution

    @classmethod
    def of(cls, out: Path) -> Demonstration:
        """Two institutions that are not set up yet, on free ports."""
        from ddib_fed.cli.institutions import Institution, free_ports

        ports = free_ports(2)
        return cls(
            out,
            Institution("north.example", "source", SOURCE_DOMAIN, out / "north", ports[0]),
            Institution("south.example", "target", TARGET_DOMAIN, out / "south", ports[1]),
        )

    @property
    def profile(self) -> Path:
        """The client's."""
        return self.out / "alice" / "client.toml"

    @property
    def target(self) -> str:
        """As `--to` takes it."""
        return f"{self.south.name}/{self.south.domain}"

    @contextlib.contextmanager
    def running(self, *, keep: bool) -> Iterator[None]:
        """Both nodes set up, admitted by one another, and serving; stopped in the end unless they are kept."""
        from ddib_fed.cli.institutions import run_command

        try:
            for institution in (self.north, self.south):
                institution.set_up(show)
            north_file, north_print = self.north.export(show, self.out)
            south_file, south_print = self.south.export(show, self.out)
            self.north.admit(show, south_file, south_print)
            self.south.admit(show, north_file, north_print)
            for institution in (self.north, self.south):
                institution.start(show)
            run_command(
                show, "init", "client", "--node-config", self.north.config_path, "--name", "alice",
                "--out", self.out / "alice",
            )  # fmt: skip
            with console(stderr=True).status("the nodes load and warm up their models"):
                for institution in (self.north, self.south):
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
                self.north.stop()
                self.south.stop()

    def translate(self, points: int) -> Delivered:
        """Draw points and translate them there and back through the client."""
        import numpy as np

        from ddib_fed.cli.progress import JobProgress
        from ddib_fed.cli.session import open_client
        from ddib_fed.cli.translate import Order, receive, submit
        from ddib_fed.data.synthetic import sample
        from ddib_fed.node.client import require_finished
        from ddib_fed.node.payload import payload
        from ddib_fed.node.profile import Profile
        from ddib_fed.node.views import Settings

        path, out = self.out / "points.npy", self.out / "translated"
        np.save(path, sample(SOURCE_DOMAIN, points, SEED))
        show(
            f"ddib translate {path} --to {self.target} --out {out} --cycle --keep-latent --profile {self.profile}"
        )
        asked = Order(self.target, Settings(evaluations=STEPS), cycle=True, keep_latent=True, deadline_s=None)
        profile = Profile.load(self.profile)
        with JobProgress([path.name]) as progress, open_client(profile, on_wait=progress.wait) as client:
            submitted, inputs = submit(client, [path], [payload(path)], asked, out)
            job, delivered = receive(client, submitted, inputs, progress, out, force=False)
        require_finished(job, f"source {profile.institution}")
        return delivered[0]

    def say_how_to_go_on(self) -> None:
        """Addresses, and commands to try."""
        for institution in (self.north, self.south):
            pid = institution.process.pid if institution.process is not None else "-"
            click.echo(
                f"{institution.name} ({institution.role} node) listens on 127.0.0.1:{institution.port}, pid {pid}"
            )
        points, profile = self.out / "points.npy", f"--profile {self.profile}"
        north, south = (f"ddib drain --config {node.config_path}" for node in (self.north, self.south))
        click.echo("try:")
        click.echo(f"  ddib domains {profile}")
        click.echo(f"  ddib translate {points} --to {self.target} --out again --steps 24 --cycle {profile}")
        click.echo(f"  ddib job list {profile}")
        click.echo(f"  ddib status --config {self.north.config_path}")
        click.echo(f"  {north}; {south}   # stop both")


def show(command: str) -> None:
    """A command, as one would type it."""
    click.echo(click.style(f"$ {command}", dim=True))


def finish(demonstration: Demonstration, delivered: Delivered, started: float) -> None:
    """Measure, draw, print and judge.

    Raises:
        OutOfBounds: A figure is not within its bound.
    """
    from ddib_fed.cli.demo_report import Clouds, draw, measure, print_bounds, print_hops, write_report

    clouds = Clouds.load(demonstration.out / "points.npy", delivered.files)
    print_hops(clouds, delivered.provenance)
    figures = measure(clouds, delivered.provenance, TARGET_DOMAIN)
    draw(clouds, figures, demonstration.out / "translation.png")
    write_report(demonstration.out / "report.json", figures, time.perf_counter() - started)
    print_bounds(figures)
    click.echo(f"{demonstration.out / 'translation.png'}\n{demonstration.out / 'report.json'}")
    wrong = [bound.name for bound in figures.bounds if not bound.ok]
    if wrong:
        raise OutOfBounds(
            f"out of bounds: {', '.join(wrong)}", hint=f"see {demonstration.out / 'report.json'}"
        )

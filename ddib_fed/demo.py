"""`ddib demo`: institutions in a folder, real nodes, and points and then pictures there and back.

Everything runs through the commands that users have, and each is printed so that it can be pasted. Nodes that were
started are always stopped, unless they are to be kept.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ddib_fed
from ddib_fed.cli.options import option
from ddib_fed.errors import AlreadyExists, Cancelled, OutOfBounds, StateConflict
from ddib_fed.files import write_json
from ddib_fed.terminal import NODE_EXTRA, say

if TYPE_CHECKING:
    from ddib_fed.demo_figures import DemoPart
    from ddib_fed.testing import TwoNodes

MARKER = ".ddib-demo"
NODES = ("north", "south", "east", "west")
MADE_HERE = (*NODES, "translated", "points.npy",
             "translation.png", "pictures", "pictures.png", "report.json")  # fmt: skip
POINTS = 10_000
PICTURES = 16
LATENT = "satellite-256-as-relief-256", "relief-256"
"""Models of latents; the first was trained on pictures mapped by the calibration that ships with it."""


def run(*words: object) -> str:
    """Run a `ddib` command in this process, and show it; return what it prints."""
    from ddib_fed.testing import ddib

    return ddib(*words, echo=show)


def show(line: str) -> None:
    """Print a command as it is typed."""
    say(f"$ {line}", dim=True)


def translate(nodes: TwoNodes, files: Path, out: Path, *further: str) -> None:
    """Translate files as the source's client."""
    run("translate", files, "--to", nodes.to, "--out", out, *further, "--profile", nodes.profile)


def agree(nodes: TwoNodes, *words: str) -> ddib_fed.Calibration:
    """Propose a calibration to the target; return it once both operators have signed it."""
    source, target = nodes.source.config_path, nodes.target.config_path
    words = "--peer", nodes.to, *words, "--yes", "--format", "json"
    answer = json.loads(run("calibrate", *words, "--config", source))
    name = answer["sha256"][:12]
    if answer["state"] != "signed":
        run("calibrate", "accept", name, "--yes", "--config", target)
        say(*run("calibrate", "send", name, "--config", source).splitlines())
    return ddib_fed.Calibration.open(nodes.source.config.paths.calibrations / f"{answer['sha256']}.json")


def say_what_to_try(nodes: TwoNodes, files: Path) -> None:
    """Print the addresses of nodes that were kept, and commands for them."""
    for node in nodes.both:
        say(f"{node.institution} ({node.role} node) listens on 127.0.0.1:{node.port}")
    profile = f"--profile {shlex.quote(str(nodes.profile))}"
    out = f"again-{nodes.source.config.model.domain}"
    drains = [f"ddib drain --config {shlex.quote(str(node.config_path))}" for node in nodes.both]
    say(
        "try:",
        f"  ddib domains {profile}",
        f"  ddib translate {shlex.quote(str(files))} --to {nodes.to} --out {out} {profile}",
        f"  ddib status --config {shlex.quote(str(nodes.source.config_path))}",
        f"  {'; '.join(drains)}   # stop both",
    )


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


def demonstrate(out: Path, *, keep: bool = False) -> None:
    from ddib_fed import demo_figures
    from ddib_fed.testing import TwoNodes

    started = time.perf_counter()
    prepare(out)
    create = partial(TwoNodes.create, out, echo=show)
    # SIGTERM is treated like Ctrl-C, so that the nodes are stopped.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    cycle = ("--cycle", "--keep-latents")
    try:
        with ExitStack() as running:
            say("", "Points: moons of north.example become checkerboards of south.example, and return", "")
            with_points = create("moons", "checkerboards", institutions=("north.example", "south.example"))
            running.enter_context(with_points)
            sent = demo_figures.draw_points(out / "points.npy", "moons", POINTS)
            translate(with_points, sent, out / "translated", *cycle)
            parts = [demo_figures.measure_points(sent, out / "translated", out / "translation.png")]
            parts[0].show()
            if not keep:
                with_points.stop()
            say("", "Pictures: satellite of east.example become relief of west.example, and return", "")
            with_pictures = create(
                *LATENT,
                institutions=("east.example", "west.example"),
                settings={"calibration": ["colour-map"], "least_share": 0.75},
            )
            running.enter_context(with_pictures)
            folder = out / "pictures"
            originals, truths = (
                demo_figures.draw_pictures(folder / name, node.config.model.domain, PICTURES)
                for name, node in zip(("in", "truth"), with_pictures.both, strict=True)
            )
            calibration = agree(with_pictures, "--from", LATENT[0])
            translate(with_pictures, originals, folder / "translated", *cycle)
            measured = demo_figures.measure_pictures(
                originals,
                truths,
                folder / "translated",
                calibration,
                ddib_fed.Model.open(LATENT[1]),
                out / "pictures.png",
            )
            parts.append(measured)
            parts[1].show()
            finish(out / "report.json", parts, time.perf_counter() - started)
            if keep:
                running.pop_all()
                say_what_to_try(with_points, sent)
                say_what_to_try(with_pictures, originals)
            else:
                with_pictures.stop()
    except Cancelled as error:
        raise Cancelled("interrupted; the demo's nodes are stopped", hint="ddib demo") from error
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare(out: Path) -> None:
    """Make or empty the demo's folder."""
    from ddib_fed.testing import NodeProcess

    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise AlreadyExists(f"{out} is not empty and was not made by a demo", hint="ddib demo --out ANOTHER")
    for node in (NodeProcess(out / name) for name in NODES):
        if node.config_path.is_file() and node.state() != "down":
            raise StateConflict(
                f"a node of an earlier demo still runs in {node.folder}",
                hint=f"ddib drain --config {shlex.quote(str(node.config_path))}",
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

"""`ddib demo`: institutions in a folder, real nodes, and points and then pictures there and back through the client."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import click

from ddib_fed.cli.demo_nodes import CALIBRATION, DemoPart, Pair, still_runs
from ddib_fed.cli.options import command
from ddib_fed.errors import AlreadyExists, OutOfBounds, StateConflict
from ddib_fed.files import write_json
from ddib_fed.terminal import NODE_EXTRA, say

MARKER = ".ddib-demo"
NODES = ("north", "south", "east", "west")
MADE_HERE = (*NODES, "translated", "points.npy",
             "translation.png", "pictures", "pictures.png", "report.json")  # fmt: skip
REPORT = "report.json"
POINTS = 10_000


@command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("ddib-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for all output; the folder of an earlier demo is replaced.",
)
@click.option(
    "--keep", is_flag=True, help="Leave the nodes running; print their addresses and commands to try next."
)
def demo(out: Path, keep: bool) -> None:
    """Two institutions on this machine translate there and back.

    First points: north.example has moons, south.example checkerboards. Then pictures: east.example has satellite
    pictures, west.example relief maps; they are translated once without a calibration, and again after the two nodes
    have agreed on one. Each pair is set up by the same commands that the README shows; two nodes are
    started and translate over mutual TLS; what happened at each hop is printed. Writes DIR/translation.png,
    DIR/pictures.png and DIR/report.json. Exits non-zero if a figure is out of bounds.

    The pictures need the packages of the extra `data` and models of both domains; without them only the points
    are translated, and the report states what is missing.
    """
    demonstrate(out, keep=keep)


def demonstrate(
    out: Path, *, keep: bool = False, points: int = POINTS, models: Mapping[str, Path] | None = None
) -> None:
    """Run the demo, with `models` by domain instead of the shipped ones."""
    for package in sorted(NODE_EXTRA):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(package, name=package)
    from ddib_fed.cli import demo_parts

    started = time.perf_counter()
    prepare(out)
    given, outcomes = models or {}, []
    kept: list[tuple[Pair, str]] = []
    with sigterm_as_ctrl_c(), contextlib.ExitStack() as failed:
        say("", "Points: moons of north.example become checkerboards of south.example, and return", "")
        pair = Pair.of(out, ("north.example", "south.example"), demo_parts.POINTS, "alice", models=given)
        failed.callback(pair.stop)
        with pair.running(keep=keep):
            kept.append((pair, str(out / "points.npy")))
            outcomes.append(demo_parts.translate_points(pair, points))
        outcomes[-1].show()
        say("", "Pictures: satellite of east.example become relief of west.example, and return", "")
        skipped = demo_parts.missing(given)
        if skipped is None:
            allowed = ("policy", "calibration", "[]", f'["{CALIBRATION}"]')
            institutions = ("east.example", "west.example")
            pair = Pair.of(out, institutions, demo_parts.PICTURES, "bob", models=given, settings=(allowed,))
            failed.callback(pair.stop)
            with pair.running(keep=keep):
                kept.append((pair, f"{out / 'pictures' / 'in'}/*.png"))
                outcomes.append(demo_parts.translate_pictures(pair))
            outcomes[-1].show()
        else:
            say(f"left out: {skipped.figures['skipped']}; {skipped.figures['command']}")
            outcomes.append(skipped)
        finish(out / REPORT, outcomes, time.perf_counter() - started)
        failed.pop_all()
    for pair, files in kept if keep else ():
        pair.say_what_to_try(files)


def prepare(out: Path) -> None:
    """Make or empty the demo's folder."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise AlreadyExists(f"{out} is not empty and was not made by a demo", hint="ddib demo --out ANOTHER")
    for name in NODES:
        if still_runs(config := out / name / "node.toml"):
            raise StateConflict(
                f"a node of an earlier demo still runs in {out / name}",
                hint=f"ddib drain --config {shlex.quote(str(config))}",
            )
    out.mkdir(parents=True, exist_ok=True)
    for name in MADE_HERE:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (out / MARKER).write_text("made by `ddib demo`, which empties this folder when it runs again\n")


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that the nodes are stopped."""

    def leave(number: int, frame: FrameType | None) -> None:
        del number, frame
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def finish(report: Path, outcomes: Sequence[DemoPart], seconds: float) -> None:
    """Write the figures and bounds of all parts as JSON, and check the bounds."""
    bounds = [bound for outcome in outcomes for bound in outcome.bounds]
    figures = {outcome.name: outcome.figures for outcome in outcomes}
    write_json(
        report, {"seconds": round(seconds, 3), **figures, "bounds": [asdict(bound) for bound in bounds]}
    )
    say(str(report))
    if wrong := [bound.name for bound in bounds if not bound.ok]:
        raise OutOfBounds(f"out of bounds: {', '.join(wrong)}", hint=f"see {report}")

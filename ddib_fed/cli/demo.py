"""`ddib demo`: institutions in a folder, real nodes, and points and then pictures there and back through the client."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType

import click

from ddib_fed.cli.demo_nodes import Outcome, Pair, Site, print_bounds, write_report
from ddib_fed.cli.help import command
from ddib_fed.errors import AlreadyExists, OutOfBounds, StateConflict
from ddib_fed.terminal import NODE_EXTRA, say

MARKER = ".ddib-demo"
NODES = ("north", "south", "east", "west")
MADE_HERE = (*NODES, *(f"{name}.example.peer" for name in NODES), "alice", "bob", "translated", "points.npy",
             "translation.png", "pictures", "pictures.png", "report.json")  # fmt: skip
REPORT = "report.json"
SHIPPED: Mapping[str, Path] = MappingProxyType({})


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
@click.option(
    "--points",
    type=click.IntRange(1_000, 100_000),
    default=10_000,
    show_default=True,
    help="Number of points.",
)
def demo(out: Path, keep: bool, points: int) -> None:
    """Two institutions on this machine translate there and back.

    First points: north.example has moons, south.example checkerboards. Then pictures: east.example has satellite
    pictures, west.example relief maps; they are translated once without a calibration, and again after the two nodes
    have agreed on one. Each pair is set up by the same commands that the README shows; two nodes are
    started and translate over mutual TLS; what happened at each hop is printed. Writes DIR/translation.png,
    DIR/pictures.png and DIR/report.json. Exits non-zero if a figure is out of bounds.

    The pictures need the packages of the extra `data` and models of both domains; without them only the points
    are translated, and the report states what is missing.
    """
    demonstrate(out, keep=keep, points=points)


def demonstrate(out: Path, *, keep: bool, points: int, models: Mapping[str, Path] = SHIPPED) -> None:
    """Run the demo."""
    require_node_extra()
    started = time.perf_counter()
    prepare(out)
    parts = _parts(points, models)
    pairs = [
        None if part.skipped is not None else Pair.of(out, *part.sites, part.person, part.calibrations)
        for part in parts
    ]
    outcomes: list[Outcome] = []
    with sigterm_as_ctrl_c(), contextlib.ExitStack() as nodes, _stopped_on_failure(pairs):
        for part, pair, following in zip(parts, pairs, (*pairs[1:], None), strict=True):
            say("", part.heading, "", style="bold")
            if part.skipped is not None or pair is None:
                outcomes.append(_left_out(part))
                continue
            nodes.enter_context(pair.running(keep=keep))
            if following is not None:
                following.begin()  # its nodes load while this part's work
            outcomes.append(part.translate(pair))
            show_outcome(outcomes[-1])
            if not keep:
                nodes.close()
        finish(out / REPORT, outcomes, time.perf_counter() - started)
        for part, pair in zip(parts, pairs, strict=True):
            if keep and pair is not None:
                pair.say_how_to_go_on(part.shown.format(out=out))


@contextlib.contextmanager
def _stopped_on_failure(pairs: Sequence[Pair | None]) -> Iterator[None]:
    """No node outlives a demo that failed, also of a part whose turn had not come."""
    try:
        yield
    except BaseException:
        for pair in pairs:
            if pair is not None:
                pair.stop()
        raise


def _left_out(part: Part) -> Outcome:
    assert part.skipped is not None
    say(f"left out: {part.skipped.figures['skipped']}; {part.skipped.figures['command']}")
    return part.skipped


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the demo: points or pictures."""

    heading: str
    sites: tuple[Site, Site]
    person: str
    translate: Callable[[Pair], Outcome]
    shown: str
    skipped: Outcome | None = None
    calibrations: tuple[str, ...] = ()


def _parts(points: int, models: Mapping[str, Path]) -> tuple[Part, Part]:
    from ddib_fed.cli import demo_pictures, demo_points

    first, second = demo_points.sites(models), demo_pictures.sites(models)
    return (
        Part(
            f"Points: {_way(*first)}",
            first,
            demo_points.PERSON,
            lambda pair: demo_points.translate_points(pair, points),
            "{out}/points.npy",
        ),
        Part(
            f"Pictures: {_way(*second)}",
            second,
            demo_pictures.PERSON,
            demo_pictures.translate_pictures,
            "{out}/pictures/in/*.png",
            demo_pictures.missing(models),
            (demo_pictures.CALIBRATION,),
        ),
    )


def _way(source: Site, target: Site) -> str:
    return f"{source.domain} of {source.name} become {target.domain} of {target.name}, and return"


def require_node_extra() -> None:
    """Raise at once if the node's packages are not installed."""
    for package in sorted(NODE_EXTRA):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(package, name=package)


def prepare(out: Path) -> None:
    """Make or empty the demo's folder."""
    from ddib_fed.cli.demo_nodes import still_runs

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


def show_outcome(outcome: Outcome) -> None:
    """The bounds of one part, and the files that it wrote."""

    print_bounds(outcome)
    for path in outcome.files:
        say(str(path))


def finish(report: Path, outcomes: Sequence[Outcome], seconds: float) -> None:
    """Write the report and check the bounds."""

    write_report(report, outcomes, seconds)
    say(str(report))
    wrong = [bound.name for outcome in outcomes for bound in outcome.bounds if not bound.ok]
    if wrong:
        raise OutOfBounds(f"out of bounds: {', '.join(wrong)}", hint=f"see {report}")

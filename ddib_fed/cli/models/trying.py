"""`ddib try`: two folders of pictures, one page. Heavy imports wait until the command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.bars import Show, bar
from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.model_options import CALIBRATION, THREADS, read_given
from ddib_fed.cli.models.train import given, train_options, trained
from ddib_fed.cli.output import lines, outcome
from ddib_fed.errors import UsageError
from ddib_fed.terminal import say
from ddib_fed.training.config import TrainConfig, checked, seconds

if TYPE_CHECKING:
    from ddib_fed.cli.models.rehearsal import OnProgress

_TRAINING = ("size", "preset", "fit", "range", "flip", "colours", "batch", "skip_bad", "seed")
_FOLDER = click.Path(file_okay=False, path_type=Path)


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else float(seconds(value))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@command("try")
@click.argument("a", type=_FOLDER)
@click.argument("b", type=_FOLDER, required=False)
@click.option(
    "--time",
    "time_s",
    callback=_duration,
    metavar="2h",
    help="Time for the whole run, with what a finished one took before; default without --steps: 2 hours.",
)
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps of each model, instead of --time.")
@train_options(_TRAINING)
@click.option(
    "--soften-sigma",
    "--soften",
    "soften",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    metavar="SIGMA",
    help="Noise level to which pictures are diffused before encoding.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(3, 10_000),
    default=48,
    show_default=True,
    help="Network evaluations of each leg.",
)
@click.option(
    "--pictures",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Largest number of held-out pictures translated in each direction.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="auto",
    show_default=True,
    help="Device to compute on.",
)
@CALIBRATION
@THREADS
@options.OUT_RESULTS
@options.FORCE
@options.OUTCOME
def try_(
    *,
    a: Path,
    b: Path | None,
    out: Path,
    force: bool,
    time_s: float | None,
    steps: int | None,
    pictures: int,
    evaluations: int,
    soften: float,
    calibration: Path | None,
    **settings: Any,
) -> None:
    """Train on two folders of pictures, translate held-out pictures both ways, and write one page.

    Checks both folders, trains a model of each for half the time, translates held-out pictures there and back, and
    writes index.html: pictures, figures and what to try next. It rehearses in one process what two
    institutions do; nodes can serve its models (DIR/a, DIR/b) unchanged. The same command continues a
    stopped run, and with more --time or --steps a finished one. One folder with trainA and
    trainB is accepted instead of two. After `ddib calibrate --local DIR/a DIR/b`, the same command with --calibration
    translates again, under the calibration.
    """
    from ddib_fed.cli.models.rehearsal import Rehearsal, rehearse, sides_of
    from ddib_fed.models.bundle import load_bundle

    if time_s is not None and steps is not None:
        raise UsageError("--time and --steps both say how long", hint="omit one of them")
    if steps is None and time_s is None:
        time_s = 7200.0
    first, second, test_a, test_b = sides_of(a, b)
    # A range belongs to one folder, so it is filled in for each side.
    fields = {"images": Path(), "soften_sigma": soften, **given({"steps": steps, **settings})}
    config = checked(TrainConfig, fields, "ddib try --help")
    config = config.model_copy(
        update={"command": f"ddib model train --images FOLDER --preset {config.preset}"}
    )
    agreed = read_given(calibration)
    wanted = Rehearsal(first, second, out, config, time_s, test_a, test_b, pictures, evaluations, agreed)
    with _bars() as on_progress:
        page = rehearse(wanted, force=force, say=partial(say, err=True), on_progress=on_progress)
    lines(
        {
            "models": f"{out / 'a'}, {out / 'b'}",
            "pictures": f"{out / 'a-to-b'}, {out / 'b-to-a'}",
            "page": str(page),
        }
    )
    outcome(page=page, models=[trained(load_bundle(out / side), out / side) for side in ("a", "b")])


@contextmanager
def _bars() -> Iterator[OnProgress]:
    """A bar for one part after the other."""
    with ExitStack() as stack:
        now: dict[str, Show] = {}

        def on_progress(what: str, done: int, total: int, remark: str) -> None:
            if what not in now:
                stack.close()
                now.clear()
                now[what] = stack.enter_context(bar(what))
            now[what](done, total, remark)

        yield on_progress

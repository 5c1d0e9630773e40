"""`ddib try`: two folders of pictures, one page. Heavy imports wait until the command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.bars import Show, bar, lines
from ddib_fed.cli.models.picture_training import PRESETS
from ddib_fed.cli.models.training import THREADS, duration
from ddib_fed.errors import UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.runs.rehearsal import OnProgress
    from ddib_fed.training.pictures.config import PictureTrainConfig

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("try")
@click.argument("a", type=_FOLDER)
@click.argument("b", type=_FOLDER, required=False)
@click.option(
    "--time",
    "time_s",
    callback=duration,
    metavar="2h",
    help="For everything; 2 hours without it and --steps.",
)
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps of each model, instead of --time.")
@click.option(
    "--size", type=click.IntRange(8, 1024), help="Height and width for the networks; without it the preset's."
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    help="Networks; without it tiny-32, or small-64 from --size 64 on.",
)
@click.option(
    "--fit",
    type=click.Choice(["resize", "crop", "pad"]),
    default="resize",
    show_default=True,
    help="How pictures of another size are fitted, undone on output; pad suits scans.",
)
@click.option(
    "--range",
    "range_",
    default="type",
    show_default=True,
    metavar="LOW:HIGH",
    help="Raw values that become -1 and 1, as -1000:2000, p1:p99 or type.",
)
@click.option("--flip", is_flag=True, help="Mirror half of the pictures, left to right, while training.")
@click.option(
    "--colours",
    type=click.Choice(["rgb", "opponent"]),
    default="rgb",
    show_default=True,
    help="What the networks' channels are; opponent where light and dark are exchanged between A and B, hues are not.",
)
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
    help="Of the networks, a leg.",
)
@click.option(
    "--pictures",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Held-out pictures that are translated, at most, each way.",
)
@click.option("--batch", type=click.IntRange(1), help="Pictures a training step; the preset's without it.")
@click.option("--skip-bad", is_flag=True, help="List files that cannot be read, and go on.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="All randomness follows from it."
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda", "auto"]), default="auto", show_default=True, help="Where."
)
@THREADS
@options.OUT_RESULTS
@options.FORCE
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
    **settings: Any,
) -> None:
    """Train on two folders of pictures, translate what was held out both ways, and write one page.

    Checks both folders, trains a model of each for half the time, translates held-out pictures there and back, and
    writes index.html: pictures, figures and what to try next. It is the rehearsal, in one process, of what two
    institutions do; its models (DIR/a, DIR/b) can be served by their nodes as they are. What was stopped goes on with
    the same command. One folder that holds trainA and trainB does as well as two.
    """
    from ddib_fed.runs.rehearsal import Rehearsal, rehearse, sides_of

    if time_s is not None and steps is not None:
        raise UsageError("--time and --steps both say how long", hint="leave one out")
    if steps is None and time_s is None:
        time_s = 7200.0
    first, second, test_a, test_b = sides_of(a, b)
    config = _config(steps=steps, **settings)
    wanted = Rehearsal(first, second, out, config, time_s, test_a, test_b, pictures, evaluations)
    with _bars() as on_progress:
        page = rehearse(wanted, force=force, say=partial(say, err=True), on_progress=on_progress)
    lines(
        {
            "models": f"{out / 'a'}, {out / 'b'}",
            "pictures": f"{out / 'a-to-b'}, {out / 'b-to-a'}",
            "page": str(page),
        }
    )


def _config(
    *, size: int | None, preset: str | None, range_: str, soften: float, **rest: Any
) -> PictureTrainConfig:
    from pydantic import ValidationError

    from ddib_fed.training.pictures.config import PictureTrainConfig

    chosen = preset or ("small-64" if size is not None and size >= 64 else "tiny-32")
    command = " ".join(["ddib model train --images FOLDER", f"--preset {chosen}"])
    try:
        # The range belongs to a folder, which is filled in for each side.
        return PictureTrainConfig(
            images=Path(),
            size=size,
            preset=chosen,
            range=range_,
            soften_sigma=soften,
            command=command,
            **rest,
        )
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"the options contradict each other: {message}", hint="ddib try --help") from error


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

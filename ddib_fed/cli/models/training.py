"""`ddib model train`: points or pictures into a bundle. Heavy imports wait until a command runs."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddib_fed.cli import options
from ddib_fed.cli.bars import bar
from ddib_fed.cli.models.picture_options import with_options
from ddib_fed.cli.models.picture_training import NAMES, PICTURES, picture_config
from ddib_fed.errors import UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.training.pictures.config import PictureTrainConfig
    from ddib_fed.training.pictures.loop import Progress
    from ddib_fed.training.presets import TrainConfig

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}

POINTS_ONLY = frozenset({"data", "width", "blocks", "noise_schedule", "diffusion_steps"})
"""Options that a run on pictures has no use for."""
FOLDERS_ONLY = frozenset({"channels", "fit", "skip_bad", "held_out"})
"""Options that pictures which packages carry have no use for; `PictureTrainConfig` refuses the others."""
FOR_BOTH = frozenset({"network", "ema"})
"""Options of `picture_training.NAMES` that a run on points takes too."""
_OF_POINTS = {"noise_schedule": "schedule"}
SHIPPED = ("satellite", "relief", "brain-t1", "brain-t2")
"""As `ddib_fed.datasets.shipped.SHIPPED`; a test holds the two together."""
THREADS = click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Threads of torch; more may be slower.",
)


def seconds(text: str) -> float:
    """Seconds from text such as 90, 90s, 2m or 1h30m; ValueError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms]?)", text.strip().lower())
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not total > 0:
        raise ValueError(text)
    return total


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Callback of --time."""
    try:
        return None if value is None else seconds(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no time: write 90, 90s, 2m or 1h30m.", ctx, param) from error


@click.command()
@click.option(
    "--domain",
    metavar="NAME",
    help="A synthetic domain, by name or by the paper's index 0 to 5, or a domain of pictures that packages carry: "
    "satellite, relief, brain-t1, brain-t2.",
)
@click.option(
    "--data",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Points (N, D) of one's own, .npy.",
)
@click.option(
    "--images",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Pictures of one's own: PNG, JPEG, TIFF and .npy below this folder.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The bundle's folder.",
)
@click.option(
    "--name", metavar="NAME", help="What the bundle calls its domain, if not after what it is made of."
)
@click.option(
    "--steps", type=click.IntRange(1), help="Optimiser steps; without it and --time 2,000, or the preset's."
)
@click.option(
    "--time", "time_s", callback=duration, metavar="2m", help="Take as many steps as fit into this time."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="All randomness follows from it."
)
@click.option("--batch", type=click.IntRange(1), help="Points (2,048) or pictures (the preset's) a step.")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), help="Its peak: 2e-3, or the preset's."
)
@click.option(
    "--width", type=click.IntRange(1, 4096), default=160, show_default=True, help="Points: hidden units."
)
@click.option(
    "--blocks", type=click.IntRange(1, 64), default=4, show_default=True, help="Points: residual blocks."
)
@click.option(
    "--noise-schedule",
    type=click.Choice(["linear", "cosine"]),
    help="Points: noise schedule; without it cosine, or linear for --network public.",
)
@click.option(
    "--diffusion-steps",
    type=click.IntRange(2, 10_000),
    metavar="T",
    help="Points: integer steps of the schedule, as the public code makes them; without it continuous time, or "
    "4000 for --network public.",
)
@THREADS
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of matrix products; bfloat16 is faster only on machines that have it.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    help="Of stored weights: float32 for points, float16 for pictures.",
)
@with_options(PICTURES)
@click.option("--resume", is_flag=True, help="Go on with the unfinished run in --out.")
@click.option("--force", is_flag=True, help="Start again, whatever is in --out.")
@click.pass_context
def train(ctx: click.Context, /, *, out: Path, resume: bool, force: bool, **settings: Any) -> None:
    """Train a model and write its bundle, with progress.csv, loss curve, samples and checkpoints in DIR/run.

    A run that was killed and is resumed ends bit for bit as one that was not. Training on pictures shares its work
    among processes or GPUs: torchrun --nproc-per-node 4 --no-python ddib model train --images FOLDER ... Training on
    points runs in one process, and refuses several.
    """
    given = [name for name in settings if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    pictures = settings["images"] is not None or settings["domain"] in SHIPPED
    kind, other = ("pictures", "points") if pictures else ("points", "pictures")
    options.refuse_idle(
        POINTS_ONLY if pictures else NAMES - FOR_BOTH,
        f"is for {other}, and this run is on {kind}",
        hint="ddib model train --help",
    )
    if pictures and settings["images"] is None:
        options.refuse_idle(
            FOLDERS_ONLY, f"is for a folder of pictures, not for {settings['domain']}", hint="leave it out"
        )
    options.refuse_both_ways(resume=resume, force=force)
    command = command_line()
    if pictures:
        done = train_on_pictures(picture_config(settings, given, command), out, resume=resume, force=force)
    else:
        done = _points(_point_config(settings, given, command), out, resume=resume, force=force)
    if done is not None:
        say(f"{out}: {summary(done)}")


def command_line() -> str:
    """The command that this process was started with, to be recorded."""
    return shlex.join(["ddib", *sys.argv[1:]])[:2000]


def _points(config: TrainConfig, out: Path, *, resume: bool, force: bool) -> Bundle:
    from ddib_fed.training.run import train as run

    with bar("training") as show:
        return run(
            config,
            out,
            lambda p: show(p.step, p.steps, f"loss {p.loss:.4f}  {p.rate:.1f} steps/s"),
            resume=resume,
            force=force,
        )


def train_on_pictures(config: PictureTrainConfig, out: Path, *, resume: bool, force: bool) -> Bundle | None:
    """Train on pictures; None in all processes of torchrun but the first, which speaks for them."""
    from ddib_fed.training.pictures.run import train_pictures

    with bar("training") as show, bar("checking") as look, _stopping() as stop:

        def on_progress(progress: Progress) -> None:
            held_out = "" if progress.held_out is None else f"  held out {progress.held_out:.4f}"
            show(
                progress.step,
                progress.steps,
                f"loss {progress.loss:.4f}{held_out}  {progress.rate:.2g} steps/s",
            )
            stop(progress.step)

        done = train_pictures(
            config,
            out,
            on_progress,
            resume=resume,
            force=force,
            say=partial(say, err=True),
            on_scan=lambda count, total: look(count, total, "pictures"),
        )
    return done if os.environ.get("RANK", "0") == "0" else None


@contextmanager
def _stopping() -> Iterator[Callable[[int], None]]:
    """Let Ctrl-C and SIGTERM end a run after the step that it is in, so that nothing is lost.

    Under torchrun signals keep their meaning: one process cannot stop while the others wait for it.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping after this step; once more stops at once", err=True)

    def stop(step: int) -> None:
        if asked:
            say(f"stopped after step {step}; the same command with --resume goes on", err=True)
            raise KeyboardInterrupt

    alone = "RANK" not in os.environ and threading.current_thread() is threading.main_thread()
    before = (
        {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if alone else {}
    )
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _point_config(settings: dict[str, Any], given: Sequence[str], command: str) -> TrainConfig:
    """The options as a run on points; what contradicts itself is a usage error."""
    from pydantic import ValidationError

    from ddib_fed.datasets.synthetic import domain_name
    from ddib_fed.training.presets import PUBLIC, TrainConfig

    own = NAMES - FOR_BOTH
    fields = {
        _OF_POINTS.get(name, name): value
        for name, value in settings.items()
        if name not in own and value is not None and name != "network"
    }
    if settings["domain"] is not None:
        fields["domain"] = domain_name(settings["domain"])
    network = _point_network(settings["network"], given)
    if network is not None:
        fields = {**PUBLIC, **fields, **network}
    batch = fields.setdefault("batch", 2048)
    fields["levels"] = _divisor(batch, fields["diffusion_steps"] if network is not None else 256)
    fields.setdefault("reference", _divisor(batch, 1024))
    try:
        return TrainConfig(**fields, command=command)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"the options contradict each other: {where + ': ' if where else ''}{message}",
            hint="ddib model train --help",
        ) from error


def _point_network(asked: Sequence[str], given: Sequence[str]) -> dict[str, Any] | None:
    """Fields of the public network, where --network asks for it; None for our own."""
    from ddib_fed.cli.models.picture_training import field_value

    if not asked:
        return None
    if "public" not in asked:
        raise UsageError(
            f"--network {asked[0]} is for pictures, or goes with --network public, and this run is on points",
            hint="--network public; --width and --blocks are for the network without it",
        )
    wrong = sorted({"width", "blocks"} & set(given))
    if wrong:
        raise UsageError(
            f"--{wrong[0]} is not for the public network",
            hint="--network num_channels=256 --network num_res_blocks=3",
        )
    fields = dict(field_value(text) for text in asked if text != "public")
    strange = sorted(fields.keys() - {"num_channels", "num_res_blocks", "dropout"})
    if strange:
        raise UsageError(
            f"the public network has no field {strange[0]!r}", hint="num_channels, num_res_blocks and dropout"
        )
    return fields


def _divisor(batch: int, most: int) -> int:
    """The largest divisor of the batch up to `most`."""
    return next(k for k in range(min(most, batch), 0, -1) if batch % k == 0)


def summary(bundle: Bundle) -> str:
    """A line about a bundle that was made."""
    figures = bundle.manifest.training.figures
    text = f"{bundle.manifest.parameters:,} parameters"
    if "sliced_w2" in figures:
        text += f", sliced-W2 {figures['sliced_w2']:.4f} (floor {figures['sliced_w2_floor']:.4f})"
    if "held_out_loss" in figures and bundle.manifest.sample_kind == "picture":
        text += f", held-out loss {figures['held_out_loss']:.4f}, {figures['cpu_seconds']:.0f} s of CPU"
    return f"{text}, digest {bundle.digest[:16]}"

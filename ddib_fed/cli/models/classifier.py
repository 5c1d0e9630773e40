"""`ddib classifier`: trains classifiers of noisy pictures for guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddib_fed.cli import options
from ddib_fed.cli.models import training
from ddib_fed.cli.models.picture_options import with_options
from ddib_fed.cli.models.picture_training import LEARNING, NAMES, checked, picture_fields
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.training.pictures.config import ClassifierTrainConfig

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def classifier() -> None:
    """Train classifiers of noisy pictures, for guidance.

    Beside a classifier there is classifier-free guidance: `ddib model train --classes folders --label-dropout 0.1`.
    """


@classifier.command()
@click.option(
    "--images",
    required=True,
    type=_FOLDER,
    metavar="FOLDER",
    help="Pictures of one's own: PNG, JPEG, TIFF and .npy below this folder.",
)
@click.option("--out", required=True, type=_FOLDER, metavar="DIR", help="The bundle's folder.")
@click.option(
    "--for",
    "generator",
    type=_FOLDER,
    metavar="BUNDLE",
    help="The model to be guided: levels, units and size of the pictures are its own.",
)
@click.option("--name", metavar="NAME", help="What the bundle calls its domain, if not after the folder.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps; without it and --time the preset's.")
@click.option(
    "--time",
    "time_s",
    callback=training.duration,
    metavar="2m",
    help="Take as many steps as fit into this time.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="All randomness follows from it."
)
@click.option("--batch", type=click.IntRange(1), help="Pictures a step; the preset's without it.")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), help="Its peak; the preset's without it."
)
@training.THREADS
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of matrix products; bfloat16 is faster only on machines that have it.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), help="Of stored weights; float16 without it."
)
@with_options(LEARNING)
@click.option("--resume", is_flag=True, help="Go on with the unfinished run in --out.")
@click.option("--force", is_flag=True, help="Start again, whatever is in --out.")
@click.pass_context
def train(ctx: click.Context, /, *, out: Path, resume: bool, force: bool, **settings: Any) -> None:
    """Train a classifier of noisy pictures on a folder with classes, and write its bundle.

    Classes come from sub-folders, or with --classes prefix from file names. All else is as in `ddib model train`:
    several processes of torchrun share the work here, too.
    """
    options.refuse_both_ways(resume=resume, force=force)
    if settings["generator"] is not None:
        options.refuse_idle(("colours",), "is as the model of --for has it", hint="leave it out")
    given = [name for name in settings if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    config = _config(settings, given, training.command_line())
    done = training.train_on_pictures(config, out, resume=resume, force=force)
    if done is not None:
        say(f"{out}: {training.summary(done)}")


def _config(settings: dict[str, Any], given: list[str], command: str) -> ClassifierTrainConfig:
    from ddib_fed.models.bundle import load_bundle
    from ddib_fed.training.pictures.config import ClassifierTrainConfig

    fields = {"classes": "folders", **picture_fields(settings, given, NAMES), "command": command}
    if settings["generator"] is not None:
        made = load_bundle(settings["generator"]).manifest
        fields["generator"] = settings["generator"]
        fields.setdefault("size", made.sample_shape[-1])
        if made.picture is not None and "fit" not in fields:
            fields["fit"] = made.picture.fit
        if made.picture is not None and "range" not in fields:
            fields["range"] = f"{made.picture.low!r}:{made.picture.high!r}"
    fields.setdefault("preset", "small-64" if (fields.get("size") or 0) >= 64 else "tiny-32")
    return checked(ClassifierTrainConfig, fields, "ddib classifier train --help")

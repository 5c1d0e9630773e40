"""`ddib classifier`: trains classifiers of noisy pictures for guidance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import group
from ddib_fed.cli.models.training import train as training
from ddib_fed.cli.models.training.options import asked_for, training_options
from ddib_fed.cli.options import with_options
from ddib_fed.training.settings.config import ClassifierTrainConfig
from ddib_fed.training.settings.options import OF_PICTURES, OPTIONS, checked, network_fields, with_preset
from ddib_fed.training.settings.private import DP_FIELDS

_LEAST = DP_FIELDS | {
    "label_dropout", "parameterisation", "learn_sigma", "init", "soften_sigma", "domain",
}  # fmt: skip
"""Options of a run on pictures that a classifier has no use for."""
_NAMES = tuple(name for name in OPTIONS if name in OF_PICTURES - _LEAST and name != "images")


@group(context_settings={"help_option_names": ["-h", "--help"]})
def classifier() -> None:
    """Train classifiers of noisy pictures, for guidance.

    Alternative: classifier-free guidance, `ddib model train --classes folders --label-dropout 0.1`.
    """


@classifier.command()
@click.option(
    "--images",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Your own pictures: PNG, JPEG, TIFF and .npy below this folder.",
)
@training.OUT
@click.option(
    "--for",
    "generator",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="BUNDLE",
    help="The model to guide; its noise levels, units and picture size are used.",
)
@with_options(training_options(_NAMES, ClassifierTrainConfig))
@training.RESUME
@training.FORCE
@options.OUTCOME
@click.pass_context
def train(ctx: click.Context, /, *, out: Path, resume: bool, force: bool, **settings: Any) -> None:
    """Train a classifier of noisy pictures on a folder with classes, and write its bundle.

    Classes come from sub-folders, or with --classes prefix from file names. Otherwise as `ddib model train`:
    several processes of torchrun can share the work.
    """
    options.refuse_both_ways(resume=resume, force=force)
    if settings["generator"] is not None:
        options.refuse_idle(("colours",), "is as the model of --for has it", hint="leave it out")
    config = _config(asked_for(ctx, settings), training.command_line())
    training.run(config, out, resume=resume, force=force)


def _config(given: Mapping[str, Any], command: str) -> ClassifierTrainConfig:
    from ddib_fed.models.bundle import load_bundle

    fields = {"classes": "folders", **given, "command": command}
    if "network" in fields:
        fields["network"] = network_fields(fields["network"])
    if "generator" in fields:
        made = load_bundle(fields["generator"]).manifest
        fields.setdefault("size", made.sample_shape[-1])
        if made.picture is not None:
            fields.setdefault("fit", made.picture.fit)
            fields.setdefault("range", f"{made.picture.low!r}:{made.picture.high!r}")
            fields.setdefault("intensity", made.picture.intensity)
            fields.setdefault("slices", made.picture.slices)
    return checked(ClassifierTrainConfig, with_preset(fields), "ddib classifier train --help")

"""`ddib privacy train` and `ddib model distil`, whose options are fields of a `TrainConfig`."""

from pathlib import Path
from typing import Any

import click

from ddib_fed import TrainConfig
from ddib_fed.cli import options
from ddib_fed.cli.train import FORCE, OUT, RESUME, SET, given, run, train_options


@click.command()
@OUT
@train_options(TrainConfig.Private.options_of("points", "pictures"), TrainConfig.Private)
@SET
@RESUME
@FORCE
@options.OUTCOME
def train(*, out: Path, sets: tuple[str, ...], resume: bool, force: bool, **settings: Any) -> None:
    """Train a model with differential privacy of each training sample (DP-SGD; needs the extra dp).

    Otherwise as `ddib model train`, with its options. It bounds what the weights tell of one training sample, and hides
    no picture that is translated (SECURITY.md). Delta is a tenth of 1 / training samples.
    """
    config = TrainConfig.Private.checked(given(settings), "ddib privacy train --help", sets)
    run(config, out, resume=resume, force=force)


_NAMES = ("domain", "data", "name", "steps", "time_s", "seed", "batch", "device", "threads", "dtype")


@click.command()
@click.argument("teacher", metavar="MODEL")
@OUT
@train_options(_NAMES, TrainConfig.Distilled)
@SET
@RESUME
@FORCE
@options.OUTCOME
def distil(
    *, teacher: str, out: Path, sets: tuple[str, ...], resume: bool, force: bool, **settings: Any
) -> None:
    """Distil a model of points into one that encodes and decodes in 1, 2, 4 or 8 evaluations.

    It needs the model and points of its domain, and nothing of another party: --data, or nothing for a model of a
    domain that packages carry. The new model follows the ODE of the old one; its manifest names that and the
    measured error. Both models distilled, use --solver flow-map --evaluations 8; other solvers work with it too.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    config = TrainConfig.Distilled.checked(given(settings, teacher=teacher), "ddib model distil --help", sets)
    run(config, out, resume=resume, force=force)

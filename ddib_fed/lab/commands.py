"""`ddib privacy` and `ddib model distil`. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddib_fed import Model, TrainConfig
from ddib_fed.cli import options
from ddib_fed.cli.options import group, usual_threads
from ddib_fed.cli.train import FORCE, OUT, RESUME, SET, given, run, train_options
from ddib_fed.errors import UsageError
from ddib_fed.terminal import emit, lines, listed, say


@group()
def privacy() -> None:
    """Attack a model's own latents and samples; train with differential privacy."""


@privacy.command()
@options.option(
    "which --model MODEL",
    "A bundle's folder, whose privacy.json is written; or the name of a shipped model, which is only attacked.",
    str,
    required=True,
)
@options.option(
    "--data PATH",
    "Folder of pictures of the domain that the model was not trained on, or a .npy file of such points; default: "
    "the domain that ships. A second --data names its training data, for the attacks on membership.",
    multiple=True,
)
@options.option("--seed N", "Seed of all random draws.", click.IntRange(0), default=41)
@options.OUTCOME
def report(*, which: str, data: tuple[Path, ...], seed: int) -> None:
    """Attack the latents of your own data, and the samples of your model, and print what an attacker gets.

    The attacker knows 256 other samples with their latents, like anybody who sent some through your node, and fits
    inverters to them. The result is a lower bound: with more samples an attacker recovers more. The figures are written
    into privacy.json beside the weights; the digest does not change.
    """
    from ddib_fed.lab.report import Attack, privacy_report

    if len(data) > 2:
        raise UsageError("--data is given more than twice", hint="ddib privacy report --help")
    words = f"report --model MODEL{' --data PATH' * len(data)} --seed {seed}"
    own, training = (*data, None, None)[:2]
    attack = Attack(own, training, seed, f"ddib privacy {words}", say=lambda what: say(what, err=True))
    model = Model.open(which, threads=usual_threads())
    found = model.put_privacy(privacy_report(model, attack)).values()
    emit(found, lambda: lines(listed("", found)))


@privacy.command("train")
@OUT
@train_options(TrainConfig.Private.options_of("points", "pictures"), TrainConfig.Private)
@SET
@RESUME
@FORCE
@options.OUTCOME
def train_private(*, out: Path, sets: tuple[str, ...], resume: bool, force: bool, **settings: Any) -> None:
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

"""`ddib privacy`: what an attacker gets of a model. Heavy imports wait until a command runs."""

from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import group, usual_threads
from ddib_fed.errors import UsageError
from ddib_fed.terminal import emit, lines, listed, say


@group(hooks={"train": "ddib_fed.lab.training:train"})
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
    from ddib_fed import Model
    from ddib_fed.lab.report import Attack, privacy_report

    if len(data) > 2:
        raise UsageError("--data is given more than twice", hint="ddib privacy report --help")
    words = f"report --model MODEL{' --data PATH' * len(data)} --seed {seed}"
    unseen, training = (*data, None, None)[:2]
    attack = Attack(unseen, training, seed, f"ddib privacy {words}", say=lambda what: say(what, err=True))
    model = Model.open(which, threads=usual_threads())
    figures = model.put_privacy(privacy_report(model, attack)).values()
    emit(figures, lambda: lines(listed("", figures)))

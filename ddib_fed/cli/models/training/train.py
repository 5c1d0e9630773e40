"""`ddib model train`: points or pictures into a bundle. Heavy imports wait until a command runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.models.training.options import asked_for, spell, training_options
from ddib_fed.cli.options import with_options
from ddib_fed.cli.output import outcome
from ddib_fed.terminal import say
from ddib_fed.training.settings.config import AnyConfig
from ddib_fed.training.settings.options import OPTIONS, train_config

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle

OUT = click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The bundle's folder.",
)
RESUME = click.option("--resume", is_flag=True, help="Resume the unfinished run in --out.")
FORCE = click.option("--force", is_flag=True, help="Start over, replacing the run in --out.")
HINT = "ddib model train --help"


@command()
@with_options(training_options(OPTIONS[:3]))
@OUT
@with_options(training_options(OPTIONS[3:]))
@RESUME
@FORCE
@options.OUTCOME
@click.pass_context
def train(ctx: click.Context, /, *, out: Path, resume: bool, force: bool, **settings: Any) -> None:
    """Train a model and write its bundle, with progress.csv, loss curve, samples and checkpoints in DIR/run.

    A killed and resumed run ends bit for bit as an uninterrupted one. Several processes or GPUs share the work of one
    run: torchrun --nproc-per-node 4 --no-python ddib model train --images FOLDER ...
    """
    given = asked_for(ctx, settings)
    options.refuse_both_ways(resume=resume, force=force)
    run(train_config(given, spell=spell, hint=HINT, command=command_line()), out, resume=resume, force=force)


def command_line() -> str:
    return shlex.join(["ddib", *sys.argv[1:]])[:2000]


def run(config: AnyConfig, out: Path, *, resume: bool, force: bool) -> None:
    """Train, and print the result."""
    from ddib_fed.runs.training import train_at_terminal

    done = train_at_terminal(config, out, resume=resume, force=force)
    if done is not None:
        say(f"{out}: {summary(done)}", f"samples: {out / 'run' / 'samples.png'}")
        outcome(**trained(done, out))


def trained(bundle: Bundle, out: Path) -> dict[str, object]:
    """A new bundle as JSON values."""
    from ddib_fed.metrics.sample_verdict import SampleVerdict

    made = bundle.manifest
    verdict = SampleVerdict.of_figures(made.training.figures)
    return {
        "out": out,
        "domain": made.domain,
        "digest": bundle.digest,
        "parameters": made.parameters,
        "steps": made.training.steps,
        "figures": made.training.figures,
        "samples": None if verdict is None else verdict.level,
    }


def summary(bundle: Bundle) -> str:
    """A line about the new bundle."""
    from ddib_fed.metrics.sample_verdict import SampleVerdict

    figures = bundle.manifest.training.figures
    text = f"{bundle.manifest.parameters:,} parameters"
    if "sliced_w2" in figures:
        text += f", sliced-W2 {figures['sliced_w2']:.4f} (floor {figures['sliced_w2_floor']:.4f})"
    if "held_out_loss" in figures and bundle.manifest.sample_kind == "picture":
        text += f", held-out loss {figures['held_out_loss']:.4f}, {figures['cpu_seconds']:.0f} s of CPU"
    verdict = SampleVerdict.of_figures(figures)
    if verdict is not None:
        text += f", samples {verdict.level}"
    return f"{text}, digest {bundle.digest[:16]}"

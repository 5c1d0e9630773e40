"""`ddib model distil`: a network for both ways in a few evaluations. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.models.training import train as training
from ddib_fed.cli.models.training.options import asked_for, training_options
from ddib_fed.cli.options import with_options
from ddib_fed.cli.output import lines, outcome
from ddib_fed.terminal import say
from ddib_fed.training.settings.distil_config import DistilConfig
from ddib_fed.training.settings.options import checked

if TYPE_CHECKING:
    from ddib_fed.models.manifest import Distilled

_NAMES = (
    "domain", "data", "images", "classes", "skip_bad", "name", "steps", "time_s", "seed", "batch", "learning_rate",
    "ema", "precision", "microbatch", "device", "threads", "dtype", "samples", "checkpoint_every",
)  # fmt: skip


@command()
@click.argument("teacher", metavar="MODEL")
@training.OUT
@with_options(training_options(_NAMES, DistilConfig))
@training.RESUME
@training.FORCE
@options.OUTCOME
@click.pass_context
def distil(
    ctx: click.Context, /, *, teacher: str, out: Path, resume: bool, force: bool, **settings: Any
) -> None:
    """Distil a model into one that encodes and decodes in 1, 2, 4 or 8 evaluations.

    It needs the model and samples of its domain, and nothing of another party: --data or --images, or nothing for a
    model of a domain that packages carry. The new model follows the ODE of the old one; its manifest names that and the
    measured error. Both models distilled, use --solver flow-map --evaluations 8; other solvers work with it too.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    from ddib_fed.runs.training import train_at_terminal

    options.refuse_both_ways(resume=resume, force=force)
    given = {**asked_for(ctx, settings), "teacher": teacher, "command": training.command_line()}
    config = checked(DistilConfig, given, "ddib model distil --help")
    done = train_at_terminal(config, out, resume=resume, force=force)
    if done is None or done.manifest.distilled is None:
        return
    lines(described(done.manifest.distilled))
    say(f"{out}: {done.manifest.parameters:,} parameters, digest {done.digest[:16]}")
    outcome(**training.trained(done, out), distilled=done.manifest.distilled)


def described(found: Distilled) -> dict[str, str]:
    """What a distilled model was made from and how accurate it is, line by line."""
    rows = {
        "distilled from": f"{found.teacher_name}, digest {found.teacher[:16]}",
        "errors": f"on the grid {found.grid}: distances from its {found.solver} with {found.evaluations} evaluations, "
        f"in deviations of the data: median, and what 95 % of {found.samples:,} held-out samples stay below",
    }
    for error in found.errors:
        plural = "evaluation" if error.evaluations == 1 else "evaluations"
        rows[f"{error.evaluations} {plural}"] = (
            f"encode {error.encode:g}, {error.encode_p95:g}; decode {error.decode:g}, {error.decode_p95:g}; "
            f"there and back {error.round_trip:g}"
        )
    return rows

"""`ddib colours`: one photograph in the colours of another. Heavy imports wait until the command runs."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import refuse_overwriting, usual_threads
from ddib_fed.terminal import bars, lines, outcome, say


@click.command()
@click.argument("content", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("reference", type=click.Path(dir_okay=False, path_type=Path))
@options.option(
    "--steps N",
    "Optimiser steps of each photograph's model; 1,500 take about a minute of one core.",
    click.IntRange(1),
    default=1_500,
)
@options.option(
    "--evaluations N",
    "Network evaluations of each leg (encoding, decoding).",
    click.IntRange(1, 10_000),
    default=32,
)
@options.option("--seed N", "Seed of all randomness.", click.IntRange(0), default=0)
@options.OUT_RESULTS
@options.option("--resume", "Use the models in --out, and continue unfinished ones.")
@options.option("--force", "Train again, and overwrite existing results.")
@options.OUTCOME
def colours(*, content: Path, reference: Path, out: Path, resume: bool, force: bool, **settings: Any) -> None:
    """Give one photograph the colours of another.

    Trains one small model for each photograph and writes CONTENT-to-REFERENCE.png at full size, the models, and
    report.json.
    """
    from ddib_fed.paper.colours import open_photograph, transfer

    options.refuse_both_ways(resume=resume, force=force)
    refuse_overwriting(out, force=force or resume)
    photos = open_photograph(content), open_photograph(reference)
    typed = shlex.join(["ddib", *sys.argv[1:]])[:2000]
    with bars() as show:
        report = transfer(
            *photos,
            out,
            threads=usual_threads(),
            command=typed,
            resume=resume,
            force=force,
            on_progress=show,
            **settings,
        )
    figures = report["colours"]
    lines(
        {
            "picture": report["picture"],
            "colours": f"sliced-W2 to the reference {figures['ddib']:.3f} (content unchanged {figures['content']:.3f}, "
            f"floor {figures['floor']:.3f})",
        }
    )
    say(f"written: {out}")
    outcome(out=out, **report)

"""`ddib colours`: one photograph in the colours of another. Heavy imports wait until the command runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import command, refuse_overwriting, usual_threads
from ddib_fed.terminal import bars, lines, outcome, say


@command()
@click.argument("content", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("reference", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=1_500,
    show_default=True,
    help="Optimiser steps of each photograph's model; 1,500 take about a minute of one core.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(1, 10_000),
    default=32,
    show_default=True,
    help="Network evaluations of each leg (encoding, decoding).",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all randomness.")
@options.OUT_RESULTS
@click.option("--resume", is_flag=True, help="Use the models in --out, and continue unfinished ones.")
@click.option("--force", is_flag=True, help="Train again, and overwrite existing results.")
@options.OUTCOME
def colours(
    *,
    content: Path,
    reference: Path,
    steps: int,
    evaluations: int,
    seed: int,
    out: Path,
    resume: bool,
    force: bool,
) -> None:
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
            steps=steps,
            evaluations=evaluations,
            seed=seed,
            threads=usual_threads(),
            command=typed,
            resume=resume,
            force=force,
            on_progress=show,
        )
    found, trip = report["colours"], report["round_trip"]
    lines(
        {
            "picture": report["picture"],
            "colours": f"sliced-W2 to the reference {found['ddib']:.3f} (content unchanged {found['content']:.3f}, "
            f"floor {found['floor']:.3f})",
            "round trip": f"median {trip['median']:.2f} levels, 99 % within {trip['p99']:.1f}",
        }
    )
    say(f"written: {out}")
    outcome(out=out, **report)

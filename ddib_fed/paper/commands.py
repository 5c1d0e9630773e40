"""`ddib colours`: one photograph in the colours of another. Heavy imports wait until the command runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.options import THREADS, refuse_overwriting
from ddib_fed.cli.output import lines, outcome
from ddib_fed.terminal import bars, say


@command()
@click.argument("content")
@click.argument("reference")
@click.option(
    "--space",
    type=click.Choice(["rgb", "lab"]),
    default="rgb",
    show_default=True,
    help="Colour space of the points: the file's own numbers, or CIE L*a*b*.",
)
@click.option("--both", is_flag=True, help="Also give REFERENCE the colours of CONTENT.")
@click.option(
    "--smooth",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Blur of the two colour densities, in their standard deviations; less is more exact and has more speckle.",
)
@click.option(
    "--evaluations",
    "--steps",
    "evaluations",
    type=click.IntRange(1, 10_000),
    default=32,
    show_default=True,
    help="Network evaluations of each leg (encoding, decoding).",
)
@click.option(
    "--train-steps",
    type=click.IntRange(1),
    default=1_500,
    show_default=True,
    help="Optimiser steps of each photograph's model; 1,500 take about a minute of one core.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all randomness.")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Also compute EMD, Sinkhorn and linear maps (needs POT).",
)
@THREADS
@options.OUT_RESULTS
@click.option("--resume", is_flag=True, help="Use the models in --out, and continue unfinished ones.")
@click.option("--force", is_flag=True, help="Train again, and overwrite existing results.")
@options.OUTCOME
def colours(
    *,
    content: str,
    reference: str,
    evaluations: int,
    baselines: bool,
    out: Path,
    resume: bool,
    force: bool,
    **given: Any,
) -> None:
    """Give one photograph the colours of another; compare with optimal transport.

    CONTENT and REFERENCE are picture files, or photographs that packages carry: sklearn:china, sklearn:flower,
    skimage:astronaut, skimage:coffee, skimage:chelsea, skimage:rocket, skimage:retina, skimage:hubble.

    Trains one small model for each photograph and writes CONTENT-to-REFERENCE.png at full size, the baselines' pictures
    beside it, the models, and report.json.
    """
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.paper.colours import ColourSettings, open_photograph, transfer

    options.refuse_both_ways(resume=resume, force=force)
    refuse_overwriting(out, force=force or resume)
    photos = open_photograph(content), open_photograph(reference)
    settings = ColourSettings(
        solver=SolverSettings(evaluations=evaluations),
        compare=baselines,
        command=shlex.join(["ddib", *sys.argv[1:]])[:2000],
        **given,
    )
    with bars() as show:
        report = transfer(*photos, settings, out, resume=resume, force=force, on_progress=show)
    for direction in report["directions"]:
        lines(_summary(direction))
    for photo in photos:
        if photo.credit:
            say(f"credit: {photo.credit}; colours changed")
    say(f"written: {out}")
    outcome(out=out, **report)


def _summary(direction: dict[str, Any]) -> dict[str, str]:
    mse, found = direction["mse"], direction["colours"]
    latent, trip = direction["latent"], direction["round_trip"]
    return {
        "picture": direction["picture"],
        "MSE in [-1, 1] to": ", ".join(f"{name} {value:.3f}" for name, value in mse.items()),
        "colours": f"sliced-W2 to the reference {found['ddib']:.3f} (content unchanged {found['content']:.3f}, "
        f"floor {found['floor']:.3f})",
        "latent": f"mean {latent['mean']:+.3f}, std {latent['std']:.3f}, kurtosis {latent['kurtosis']:+.3f}",
        "round trip": f"median {trip['median']:.2f} levels, 99 % within {trip['p99']:.1f}",
    }

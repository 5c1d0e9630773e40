"""`ddib model gate`: measures what a model's own latents look like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.bars import bar
from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.model_options import THREADS
from ddib_fed.cli.output import lines, print_json

if TYPE_CHECKING:
    from ddib_fed.models.allowances import Allowances


@command()
@click.argument("folder", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder of pictures of the model's domain that it was not trained on; default: the domain that ships.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of softening.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device to compute on.",
)
@THREADS
@options.FORMAT
def gate(
    *, folder: Path, data: Path | None, seed: int, device: str, threads: int, output_format: str
) -> None:
    """Measure what a model's own latents of pictures look like, so that others are looked at before they are sent.

    Latents of held-out pictures set the bounds. A latent beyond them is encoded again before it leaves, and refused if
    the two differ. The numbers are written into gate.json beside the weights; the model's digest does not change.
    Training does this by itself where at least 40 pictures are held out. MODEL is the bundle's folder.
    """
    from ddib_fed.bridge.threads import torch_threads
    from ddib_fed.training.allowances import put_allowances

    words = [
        "ddib model gate MODEL",
        *(["--data PATH"] if data else []),
        *([f"--seed {seed}"] if seed else []),
    ]
    with bar("encoding") as show, torch_threads(threads):
        found = put_allowances(
            folder,
            data,
            command=" ".join(words),
            device=device,
            seed=seed,
            tell=lambda done, total: show(done, total, ""),
        )
    if output_format == "json":
        print_json(found.figures())
        return
    lines({"gate": found.digest(), "bounds": said(found)})


def said(allowances: Allowances) -> str:
    """What was measured, in words."""
    return (
        f"measured on {allowances.measured} latents; of {allowances.checked} others {allowances.beyond} are beyond, "
        "and would be encoded again"
    )

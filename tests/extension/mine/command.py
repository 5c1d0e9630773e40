"""`ddib depth`: how many bits the pictures of a folder have."""

from __future__ import annotations

from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.terminal import lines, outcome


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.OUTCOME
def depth(*, folder: Path) -> None:
    """Say how many bits the PGM pictures of a folder have."""
    from mine.pgm import decoded

    bits = {path.name: 8 * decoded(path).itemsize for path in sorted(folder.glob("*.pgm"))}
    lines({name: str(count) for name, count in bits.items()})
    outcome(bits=bits)

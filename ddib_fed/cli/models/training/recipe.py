"""`ddib recipe`: what two institutions agree on before each trains alone. Heavy imports wait until a command runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import group
from ddib_fed.cli.output import lines, outcome
from ddib_fed.terminal import say


@group(context_settings={"help_option_names": ["-h", "--help"]})
def recipe() -> None:
    """Share training settings, but no data, with another institution.

    A recipe is a small JSON file: preset, seed, size, range and all other settings of training on pictures, and the
    digest of the common initial weights. It contains neither data nor weights.
    """


@recipe.command()
@click.argument("run", type=click.Path(file_okay=False, path_type=Path), metavar="RUN")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The recipe, a .json file.",
)
@options.FORCE
@options.OUTCOME
def export(*, run: Path, out: Path, force: bool) -> None:
    """Write the recipe of the training in folder RUN, its --out; it need not be finished."""
    from ddib_fed.training.settings.recipes import recipe_of_run, write_recipe

    made = recipe_of_run(run)
    write_recipe(made, out, force=force)
    _show(made.start, made.digest(), out)
    outcome(recipe=out, digest=made.digest(), initial_weights=made.start or None)


@recipe.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
@click.option(
    "--init",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="BUNDLE",
    help="Initial weights: checked against the recipe.",
)
@options.FORMAT
def use(*, file: Path, init: Path | None, output_format: str) -> None:
    """Check the recipe in FILE, list its settings, and print the command that trains with it."""
    from ddib_fed.cli.output import print_json
    from ddib_fed.errors import SettingsInvalid
    from ddib_fed.models.bundle import load_bundle
    from ddib_fed.training.settings.recipes import read_recipe

    found = read_recipe(file)
    if init is not None and load_bundle(init).digest != found.start:
        raise SettingsInvalid(
            f"{init} is not the start that {file} asks for ({found.start[:16] or 'none'})",
            hint="ask for the bundle with that digest",
        )
    if output_format == "json":
        print_json({"digest": found.digest(), **found.model_dump(mode="json")})
        return
    start = f" --init {shlex.quote(str(init or 'BUNDLE'))}" if found.start else ""
    lines({name: str(value) for name, value in found.agreed.items()})
    _show(found.start, found.digest(), file)
    say(f"train by it:  ddib model train --images FOLDER --recipe {shlex.quote(str(file))}{start} --out DIR")


def _show(start: str, digest: str, file: Path) -> None:
    lines({"recipe": str(file), "digest": digest, "initial weights": start or "from the seed"})

"""`ddib study`: the same scans translated in every way, in the tables of the field, with intervals over subjects.

OUT/study.html, study.json, methods.txt
OUT/WAY/SITE/SUBJECT/               results as `ddib translate` writes them
OUT/synthetic/SITE/SUBJECT/ct.mha   those of the bridge, named as the truth is: the layout of the SynthRAD challenges
"""

from __future__ import annotations

from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.terminal import outcome, print_table, say


@click.command(
    epilog="\b\nExample:\n  ddib study plan.toml --out study   # docs/formats.md has a plan to begin with"
)
@click.argument("plan", metavar="PLAN.toml", type=click.Path(dir_okay=False, path_type=Path))
@options.OUT_RESULTS
@options.OUTCOME
@options.DEVICE
def study(plan: Path, out: Path, device: str) -> None:
    """Compare translations with all ways that need no network, in the tables of the field.

    The plan names scans of subjects, what translates them and the protocol: synthesis, harmonisation or unpaired.
    DIR/study.html shows tables, pictures, what to beware of and a paragraph for a methods section; DIR/study.json holds
    all figures. After an interruption the same command resumes.
    """
    from ddib_fed import study_ways

    made, tables = study_ways.study(plan, out, device)
    page = out / "study.html"
    outcome(page=page, scans=len(made.cases), pitfalls=[*made.pitfalls])
    for table in tables:
        print_table(table.title, table.columns, table.rows)
    for line in (*made.verdicts(), *(f"beware: {each}" for each in made.pitfalls), f"page: {page}"):
        say(line)

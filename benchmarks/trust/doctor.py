"""Prints what `ddib doctor` says of each broken set-up, as a table in Markdown.

python -m benchmarks.trust.doctor [--out FILE]
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import click

from ddib_fed.cli.main import run
from tests.cli.client.broken_setups import SETUPS, Setup


def said(setup: Setup, folder: Path) -> tuple[bool, str, str]:
    """Whether the cause is named at its step, the error, and what to try."""
    shown, errors = io.StringIO(), io.StringIO()
    with setup.made(folder) as profile, contextlib.redirect_stdout(shown), contextlib.redirect_stderr(errors):
        code = run(["doctor", "--profile", str(profile)])
    text = errors.getvalue()
    lines = text.replace(str(folder), "").splitlines()
    error = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    tried = next((line.removeprefix("  try:  ") for line in lines if line.startswith("  try:")), "")
    step = shown.getvalue().splitlines()[-1].split()
    return code != 0 and step == ["FAIL", setup.step] and setup.says in text, error, tried


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Write the table here too.")
def main(out: Path | None) -> None:
    """Break each set-up, ask `ddib doctor`, and fail when a cause is not named."""
    rows, named = ["| broken | doctor says | try |", "|---|---|---|"], 0
    for setup in SETUPS.values():
        with tempfile.TemporaryDirectory(prefix="ddib-doctor-") as folder:
            found, error, tried = said(setup, Path(folder))
        named += found
        rows.append(
            f"| {setup.what}{'' if found else ' (NOT NAMED)'} | {error} | {tried} |".replace("`", "'")
        )
    rows += ["", f"{named} of {len(SETUPS)} set-ups named."]
    text = "\n".join(rows)
    sys.stdout.write(text + "\n")
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    sys.exit(named < len(SETUPS))


if __name__ == "__main__":
    main()

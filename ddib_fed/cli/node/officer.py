"""`ddib officer report`: one page about a node, for whoever must sign for it."""

from __future__ import annotations

from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import group
from ddib_fed.cli.output import outcome
from ddib_fed.errors import AlreadyExists
from ddib_fed.terminal import say


@group()
def officer() -> None:
    """Write the page that the security officer signs."""


@officer.command(
    epilog="\b\nExamples:\n"
    "  ddib officer report --config node.toml --out officer.html\n"
    "  ddib officer report --config node.toml --out officer.md"
)
@options.CONFIG
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    default=Path("officer.html"),
    show_default=True,
    help="The page; a name that ends in .md gets Markdown, any other HTML.",
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
@options.OUTCOME
def report(config_path: Path, out: Path, force: bool) -> None:
    """Write one page: what leaves to whom, what is stored, thresholds, ports, the audit log, lines to sign.

    It is made from node.toml, the model's manifest, the state folder and the audit log, and asks the node for its state
    if it runs. It changes nothing, and contains no secret.
    """
    from ddib_fed.files import write_file
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.officer import render
    from ddib_fed.node.officer.facts import gather
    from ddib_fed.node.officer.sections import sections, title

    facts = gather(NodeConfig.load(config_path))
    make = render.as_markdown if out.suffix == ".md" else render.as_html
    page = make(title(facts), sections(facts))
    try:
        write_file(out, page.encode("utf-8", "replace"), overwrite=force)
    except AlreadyExists as error:
        error.hint = "--force, or another --out"
        raise
    say(f"wrote {out}")
    for problem in facts.problems:
        say(f"warning: {problem}", err=True)
    outcome(written=out, warnings=list(facts.problems))

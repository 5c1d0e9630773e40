"""The entry of the `ddib` command: runs a subcommand and maps exceptions to messages and exit codes.

Subcommands are imported when they are called: `ddib --help` loads click and nothing heavier, and a client
without the [node] extra can run everything that needs no network of its own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

from ddib_fed.cli.options import Group
from ddib_fed.errors import ExitCode
from ddib_fed.extensions import extensions
from ddib_fed.names import __version__
from ddib_fed.terminal import escape, explained, relay, require_alone, say, show_error

# fmt: off
SECTIONS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "Translate": (
        ("translate", "cli.translate", "Translate files and folders to another domain."),
        ("web", "cli.job", "Translate in the browser: drop pictures, watch, compare, download."),
        ("domains", "cli.job", "List the available target domains, and whether each is ready."),
        ("job", "cli.job", "Watch, fetch, cancel and delete jobs; `ddib translate --detach` submits them."),
        ("doctor", "cli.job",
         "Check the client's profile, its connection to the source node, both clocks, and the profile's DICOM peers."),
        ("demo", "demo", "Two institutions on this machine translate there and back."),
    ),
    "Run a node": (
        ("init", "cli.init", "Write a node's configuration or a client's profile."),
        ("pki", "cli.peer", "Make the institution's CA; request, issue, install, show and withdraw certificates."),
        ("peer", "cli.peer", "Export this node's peer file; add, list, test, suspend and remove peers."),
        ("pair", "cli.peer",
         "Admit another institution's node, and be admitted there, with a code read out by telephone."),
        ("calibrate", "cli.calibrate",
         "Agree with a peer on how two domains correspond."),
        ("status", "cli.operating", "Show the state of the node on this machine."),
        ("reload", "cli.operating", "Make the node re-read its peers, withdrawals and certificates."),
        ("drain", "cli.operating", "Drain the node: accept no more work, finish running work, and exit."),
        ("audit", "cli.operating", "Read and verify the node's audit log."),
    ),
    "Work with models, without nodes": (
        ("try", "cli.train:try_",
         "Train on two folders of pictures, translate held-out pictures both ways, and write one page."),
        ("model", "cli.model", "List, copy, train, sample, show and import models."),
        ("evaluate", "cli.model", "Evaluate a folder of translated pictures against references."),
    ),
}
# fmt: on
"""The commands by section of the help: name, module (a command has its own name there, or the one after a colon), and
the first sentence of its help. Commands of extensions come in by the entry points of `EXTENSIONS`."""
EXTENSIONS = "ddib_fed.commands"
COMMANDS = {
    name: f"ddib_fed.{place}" if ":" in place else f"ddib_fed.{place}:{name}"
    for section in SECTIONS.values()
    for name, place, _ in section
}
TRAINS = ["model", "train"]  # the command that several processes of torchrun share


class _Ddib(Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:2] != TRAINS and (args[0] in COMMANDS or args[0] in extensions(EXTENSIONS)):
            require_alone(f"ddib {args[0]}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands from the table, without importing any, and those of extensions."""
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, _, text in commands])
        names = sorted(extensions(EXTENSIONS).keys() - COMMANDS)
        loaded = ((name, self.get_command(ctx, name)) for name in names)
        rows = [(name.ljust(width), one.get_short_help_str(200)) for name, one in loaded if one is not None]
        if rows:
            with formatter.section("Extensions"):
                formatter.write_dl(rows)


@click.group(
    cls=_Ddib,
    hooks=COMMANDS,
    extended=EXTENSIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`ddib COMMAND --help` explains a command. Start with `ddib demo`. Exit codes: docs/troubleshooting.md.",
)
@click.version_option(__version__, "--version", prog_name="ddib", message="%(prog)s %(version)s")
def cli() -> None:
    """Translate between institutions that share neither pictures nor model weights.

    A latent is an invertible encoding of the picture: treat it as the picture.
    """


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code; what failed is written to stderr."""
    if logging.lastResort is not None:  # which prints what libraries log, e.g. about a file
        logging.lastResort.setFormatter(_Escaped())
    try:
        result = cli.main(args=args, prog_name="ddib", standalone_mode=False)
    except click.ClickException as error:
        relay(error.show)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted", err=True)
        return ExitCode.CANCELLED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has left; avoid a second error message at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:  # noqa: BLE001 - this is the edge: anything becomes a message and a code
        explanation = explained(error)
        show_error(explanation)
        return explanation.exit_code
    return result if isinstance(result, int) else ExitCode.OK


class _Escaped(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))


def main() -> NoReturn:
    os.umask(0o077)
    sys.exit(run())

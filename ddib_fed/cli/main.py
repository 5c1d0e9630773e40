"""The entry of the `ddib` command: runs a subcommand and maps exceptions to messages and exit codes.

Subcommands are imported when they are called: `ddib --help` loads click and nothing heavier, and a client
without the [node] extra can run everything that needs no network of its own.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import click

from ddib_fed.cli.help import WIDEST, Group, command
from ddib_fed.errors import ExitCode
from ddib_fed.terminal import escape, explained, relay, say
from ddib_fed.version import __version__


class Lazy(NamedTuple):
    """A command that is not imported yet: its location, and its line in the list of commands."""

    target: str
    help: str


COMMANDS: Mapping[str, Lazy] = {
    "demo": Lazy("ddib_fed.cli.demo:demo", "Two institutions on this machine translate there and back."),
    "translate": Lazy(
        "ddib_fed.cli.translate:translate",
        "Translate files and folders to another domain.",
    ),
    "web": Lazy("ddib_fed.cli.web:web", "Translate in the browser: drop pictures, watch, compare, download."),
    "domains": Lazy(
        "ddib_fed.cli.job:domains", "List the available target domains, and whether each is ready."
    ),
    "job": Lazy(
        "ddib_fed.cli.job:job",
        "Watch, fetch, cancel and delete jobs; `ddib translate --detach` submits them.",
    ),
    "doctor": Lazy(
        "ddib_fed.cli.job:doctor",
        "Check the client's profile, its connection to the source node, and both clocks.",
    ),
    "completion": Lazy(
        "ddib_fed.cli.main:completion", "Print the script that lets a shell complete commands and options."
    ),
    "init": Lazy("ddib_fed.cli.init:init", "Write a node's configuration or a client's profile."),
    "pki": Lazy(
        "ddib_fed.cli.pki:pki",
        "Make the institution's CA; request, issue, install, show and withdraw certificates.",
    ),
    "peer": Lazy(
        "ddib_fed.cli.peer:peer",
        "Export this node's peer file; add, list, test, suspend, resume and remove peers.",
    ),
    "pair": Lazy(
        "ddib_fed.cli.peer:pair",
        "Admit another institution's node, and be admitted there, with a code read out by telephone.",
    ),
    "calibrate": Lazy(
        "ddib_fed.cli.calibrate:calibrate",
        "Agree with a peer on how two domains correspond; evaluate such a calibration.",
    ),
    "status": Lazy("ddib_fed.cli.status:status", "Show the state of the node on this machine."),
    "reload": Lazy(
        "ddib_fed.cli.status:reload", "Make the node re-read its peers, withdrawals and certificates."
    ),
    "workers": Lazy(
        "ddib_fed.cli.status:workers", "Show the node's workers, or change their number to COUNT."
    ),
    "drain": Lazy(
        "ddib_fed.cli.status:drain",
        "Drain the node: accept no more work, finish running work, and exit.",
    ),
    "audit": Lazy(
        "ddib_fed.cli.audit:audit",
        "Read, follow, export and verify the node's audit log; exchange its ends with peers.",
    ),
    "try": Lazy(
        "ddib_fed.cli.train:try_",
        "Train on two folders of pictures, translate held-out pictures both ways, and write one page.",
    ),
    "model": Lazy("ddib_fed.cli.model:model", "List, copy, train, sample, show and import models."),
    "classifier": Lazy(
        "ddib_fed.cli.train:classifier",
        "Train classifiers of noisy pictures, for guidance.",
    ),
    "colours": Lazy(
        "ddib_fed.paper.commands:colours",
        "Give one photograph the colours of another.",
    ),
    "privacy": Lazy(
        "ddib_fed.lab.commands:privacy",
        "Attack a model's own latents and samples; train with differential privacy.",
    ),
    "evaluate": Lazy(
        "ddib_fed.cli.evaluate:evaluate",
        "Evaluate a folder of translated pictures against references.",
    ),
}

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Translate": ("translate", "web", "domains", "job", "doctor", "completion", "demo"),
    "Run a node": (
        "init",
        "pki",
        "peer",
        "pair",
        "calibrate",
        "status",
        "reload",
        "workers",
        "drain",
        "audit",
    ),
    "Work with models, without nodes": (
        "try",
        "model",
        "classifier",
        "colours",
        "evaluate",
        "privacy",
    ),
}


SHARED = frozenset({("model", "train"), ("classifier", "train")})
"""What several processes of torchrun may start: training checks by itself what it can share."""


class LazyGroup(Group):
    """A group that knows its commands by name and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        del ctx
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        module, _, attribute = lazy.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{lazy.target} is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in COMMANDS and tuple(args[:2]) not in SHARED:
            from ddib_fed.processes import require_alone

            require_alone(f"ddib {name}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands from the table, without importing any."""
        del ctx
        width = max(map(len, COMMANDS))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), COMMANDS[name].help) for name in names])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
    epilog="`ddib COMMAND --help` explains a command. Start with `ddib demo`. Exit codes: docs/troubleshooting.md.",
)
@click.version_option(__version__, "--version", prog_name="ddib", message="%(prog)s %(version)s")
def cli() -> None:
    """Translate between institutions that share neither pictures nor model weights.

    A latent is an invertible encoding of the picture: treat it as the picture.
    """


@command(
    epilog="\b\nTo have it in every new shell:\n"
    "  bash  echo 'eval \"$(ddib completion bash)\"' >> ~/.bashrc\n"
    "  zsh   echo 'eval \"$(ddib completion zsh)\"' >> ~/.zshrc\n"
    "  fish  ddib completion fish > ~/.config/fish/completions/ddib.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete commands and options.

    Bash must be 4.4 or newer.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(cli, {}, "ddib", "_DDIB_COMPLETE")
    # Not `source()`, which for bash starts the bash that is installed here and warns of its version.
    say(*(made.source_template % made.source_vars()).rstrip("\n").split("\n"))


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code; what failed is written to stderr."""
    _escape_warnings()
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
        from ddib_fed.cli.output import show_error

        found = explained(error)
        show_error(found)
        return found.exit_code
    return result if isinstance(result, int) else ExitCode.OK


def _escape_warnings() -> None:
    """Silences library logs, e.g. about a file, that logging's handler of last resort would print."""

    class Escaped(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return escape(super().format(record))

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Escaped())


def main() -> NoReturn:
    os.umask(0o077)
    sys.exit(run())

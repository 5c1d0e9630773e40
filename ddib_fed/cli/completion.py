"""`ddib completion`: the script with which a shell completes the command's words."""

from __future__ import annotations

import click

from ddib_fed.cli.help import command
from ddib_fed.terminal import say


@command(
    epilog="\b\nTo have it in every new shell:\n"
    "  bash  echo 'eval \"$(ddib completion bash)\"' >> ~/.bashrc\n"
    "  zsh   echo 'eval \"$(ddib completion zsh)\"' >> ~/.zshrc\n"
    "  fish  ddib completion fish > ~/.config/fish/completions/ddib.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete commands, options, domains, jobs, classes, models and peers.

    Domains, jobs and classes are asked of the node when Tab is pressed; if it does not answer within 1.5 seconds,
    none are offered. Bash must be 4.4 or newer.
    """
    from click.shell_completion import get_completion_class

    from ddib_fed.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(cli, {}, "ddib", "_DDIB_COMPLETE")
    # Not `source()`, which for bash starts the bash that is installed here and warns of its version.
    say(*(made.source_template % made.source_vars()).rstrip("\n").split("\n"))

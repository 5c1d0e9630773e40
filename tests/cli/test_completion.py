"""What a shell completes: commands and options, by the completion that click runs for it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.shell_completion import BashComplete

from ddib_fed.cli.main import cli, run


def completed(words: list[str], begun: str = "") -> list[str]:
    made = BashComplete(cli, {}, "ddib", "_DDIB_COMPLETE").get_completions(words, begun)
    return [each.value for each in made]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell, capsys):
    """It asks this very command."""
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_DDIB_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=script.encode(), check=True)


def test_commands_and_options_are_completed():
    assert completed([], "tran") == ["translate"]
    assert completed(["job"], "wa") == ["watch"]
    assert "--quality" in completed(["translate"], "--q")
    assert completed(["translate", "--solver"], "un") == ["unipc"]

"""The commands that come next, as lines that can be pasted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ddib_fed.names import CONFIG_VARIABLE, NODE_FILE
from ddib_fed.terminal import say


def with_config(path: Path) -> str:
    found = Path(os.environ.get(CONFIG_VARIABLE) or NODE_FILE)
    return "" if path == found else f" --config {shlex.quote(str(path))}"


def say_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print the next commands, each on a line of its own below its purpose."""
    say("next:")
    for command, purpose in steps:
        say(f"  {purpose}:", f"    {command}")

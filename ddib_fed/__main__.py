"""`ddib` and `python -m ddib_fed`. Until a program's modules are imported, half a second, Ctrl-C just ends it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def importing() -> Iterator[None]:
    """Inside, Ctrl-C ends the process without a word: Python would show the traceback of whatever is imported."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> NoReturn:
    """The `ddib` command."""
    with importing():
        from ddib_fed.cli.main import main as command
    command()


if __name__ == "__main__":
    main()

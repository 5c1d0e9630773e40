"""`ddib` and `python -m ddib_fed`."""

from __future__ import annotations

from typing import NoReturn

from ddib_fed.terminal import importing


def main() -> NoReturn:
    with importing():
        from ddib_fed.cli.main import main as command
    command()


if __name__ == "__main__":
    main()

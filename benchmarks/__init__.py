"""Measurements of the project, run as `python -m benchmarks...`; no part of what is installed.

A package of its own name, because opacus installs one that is called the same.
"""

import argparse


def options(described: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark, whose `--help` is its module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=described, formatter_class=argparse.RawDescriptionHelpFormatter
    )

"""What became of the files of one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddib_fed.cli.client.delivery import Delivered
from ddib_fed.cli.client.translation.checking import Entry, LeftOut
from ddib_fed.client.views import JobView


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the files of one command.

    Attributes:
        total: How many files were given.
        entries: Those that could be read.
        delivered: Results on the disk, in the order of their files.
        earlier: How many of them were there before.
        jobs: Every job that was watched to its end.
        left_out: Files that could not be read, or that the source node refused.
        failed: Files whose item failed at a node.
        not_submitted: Files that no job has: nothing more was submitted after a job failed, or it was stopped.
    """

    total: int
    entries: tuple[Entry, ...]
    delivered: tuple[Delivered, ...]
    earlier: int
    jobs: tuple[JobView, ...]
    left_out: tuple[LeftOut, ...]
    failed: tuple[LeftOut, ...]
    not_submitted: tuple[Path, ...] = ()

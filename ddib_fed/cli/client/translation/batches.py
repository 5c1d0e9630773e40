"""Files as the jobs that they make: how many go into one, and what is known of one that the node has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ddib_fed.cli.client.choosing import Chosen
from ddib_fed.cli.client.delivery import Input
from ddib_fed.cli.client.translation.checking import Entry

JOB_FILES = 250
"""Files of a job: its result is sooner complete, and less is sent again if the node refuses one of them."""
JOB_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """Files of one job that is to be submitted; a request id is that of an earlier submission of the same content."""

    entries: tuple[Entry, ...]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A job that the node has accepted, in this run or in an earlier one."""

    job_id: str
    inputs: tuple[Input, ...]
    without: frozenset[int] = field(default_factory=frozenset)
    earlier: bool = False


def split(entries: Sequence[Entry], most_files: int) -> list[Batch]:
    """Batches of at most so many files, and of at most `JOB_BYTES` unless one file alone has more."""
    batches: list[Batch] = []
    current: list[Entry] = []
    size = 0
    for entry in entries:
        if current and (len(current) >= most_files or size + entry.item.size_bytes > JOB_BYTES):
            batches.append(Batch(tuple(current)))
            current, size = [], 0
        current.append(entry)
        size += entry.item.size_bytes
    return [*batches, Batch(tuple(current))] if current else batches


def chosen_files(entries: Sequence[Entry]) -> Chosen:
    classes = tuple(entry.classes for entry in entries if entry.classes is not None)
    return Chosen(tuple(entry.path for entry in entries), tuple(entry.given for entry in entries), classes)

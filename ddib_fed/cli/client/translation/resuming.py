"""What an earlier run of the same command left in the folder: finished results, unfinished jobs, broken files.

A result counts as finished if its record says that it was made from the same bytes for the same request, and its files
have the recorded digests, or had them before they got content credentials. A job is unfinished as long as its file
with the names of its items is there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddib_fed.bridge.records.translation_record import Part, Translation
from ddib_fed.cli.client.delivery import STATE_PREFIX, Delivered, Input, JobFile
from ddib_fed.cli.client.translation.checking import Entry
from ddib_fed.client.client import Client
from ddib_fed.files import has_sha256

MOST_JOBS = 1000
"""As many as a node lists."""
_PARTS = frozenset(Part)
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}")
"""How `files.write_file` calls a file that it has not yet renamed."""
_OURS = re.compile(rf"{re.escape(STATE_PREFIX)}.*|report(-\d+)?\.html|sheet(-\d+)?\.png")


def finished(entries: Sequence[Entry], out: Path) -> Iterator[Delivered]:
    """The results of these files that are on the disk already, by their place in `entries`."""
    for number, entry in enumerate(entries):
        if found := _finished(entry.given, out, number):
            yield found


def _finished(given: Input, out: Path, number: int) -> Delivered | None:
    path = out / f"{given.name}.json"
    record = Translation.read(path) if path.exists() else None
    if record is None or not given.asked or Part.TRANSLATION not in record.files:
        return None
    if (record.asked_sha256, record.input_sha256) != (given.asked, given.sha256):
        return None
    written = {Part(kind): file for kind, file in record.files.items() if kind in _PARTS}
    files = {part: path.parent / file.file for part, file in written.items()}
    if all(_is_written(files[part], file.sha256) for part, file in written.items()):
        return Delivered(number, given.file, files, path, record)
    return None


def _is_written(path: Path, sha256: str) -> bool:
    """Whether a file has this digest, or has it without the content credentials that were put in before a kill."""
    if has_sha256(path, sha256):
        return True
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"} or not path.is_file():
        return False
    from ddib_fed.formats.credentials import without_mark

    return hashlib.sha256(without_mark(path.read_bytes(), path.suffix)).hexdigest() == sha256


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A job of an earlier run."""

    job_file: JobFile
    job_id: str = ""
    without: frozenset[int] = field(default_factory=frozenset)

    def covers(self, entry: Entry) -> bool:
        return entry.given in self.job_file.inputs

    def entries(self, known: Mapping[Input, Entry]) -> list[Entry] | None:
        found = [known.get(given) for given in self.job_file.inputs]
        return None if None in found else [entry for entry in found if entry is not None]


def unfinished_files(entries: Sequence[Entry], out: Path) -> list[Unfinished]:
    """The unfinished jobs in a folder that have one of these files, without their ids."""
    current = {entry.given.name: entry.given for entry in entries}
    found = []
    for path in sorted(out.glob(f"{STATE_PREFIX}*.json")):
        job_file = JobFile.read(path)
        if not any(current.get(given.name) == given for given in job_file.inputs):
            continue
        changed = {n for n, given in enumerate(job_file.inputs) if current.get(given.name, given) != given}
        found.append(Unfinished(job_file, "", frozenset(changed)))
    return found


def with_ids(found: Sequence[Unfinished], client: Client) -> list[Unfinished]:
    """The same jobs with the node's ids of those that it has, found by the request's id."""
    if not found:
        return []
    ids = {job.request_id: job.job_id for job in client.list(MOST_JOBS)}
    return [Unfinished(u.job_file, ids.get(u.job_file.request_id, ""), u.without) for u in found]


def remove_broken(out: Path, entries: Sequence[Entry]) -> None:
    """Remove what a killed run was writing: hidden files that never got the name of a result of these files."""
    names = {Path(entry.given.name).name for entry in entries}
    folders = {(out / entry.given.name).parent for entry in entries} | {out}
    for folder in folders:
        for path in folder.glob(".*") if folder.is_dir() else ():
            meant = _TEMPORARY.fullmatch(path.name)
            if meant and (_owner(meant[1]) in names or _OURS.fullmatch(meant[1])) and path.is_file():
                path.unlink(missing_ok=True)


def _owner(name: str) -> str:
    stem = Path(name).stem
    for part in Part:
        stem = stem.removesuffix(f".{part.value}")
    return stem

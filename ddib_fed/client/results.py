"""The results of a run on the disk: written, found again, and their names kept, which never leave this machine.

A result is acknowledged only when its files and their folder are on the disk. An existing result is overwritten only
on request, and an input never.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed.client.client import Client, JobResult
from ddib_fed.client.files import FileItem
from ddib_fed.errors import (
    AlreadyExists,
    ChunkCorrupt,
    ConfigError,
    DdibError,
    DiskFull,
    InputError,
    StateConflict,
    UsageError,
)
from ddib_fed.files import has_sha256, is_disk_full, make_private_folders, write_file
from ddib_fed.record import CALIBRATION_FILE, Part, Record, WrittenFile
from ddib_fed.v1 import translation_pb2 as pb

if TYPE_CHECKING:
    from ddib_fed.formats.credentials import Credentials

LOCK = ".ddib-translate.lock"
STATE_PREFIX = ".ddib-job-"
ACKNOWLEDGED_TOGETHER = 16
"""Items. One that was written and not acknowledged is fetched again after an interruption, and found to be the same."""
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}")
"""How `files.write_file` calls a file that it has not yet renamed."""
_OURS = re.compile(rf"{re.escape(STATE_PREFIX)}.*|{re.escape(CALIBRATION_FILE)}|report(-\d+)?\.html")


@contextmanager
def locked(out: Path, hint: str = "wait for it to end, or choose another --out folder") -> Iterator[None]:
    """Inside, this process alone writes results to a folder, which is made if it is missing."""
    made, lock = not out.exists(), out / LOCK
    make_private_folders(out)
    with lock.open("ab") as file:  # NFS locks no folder, and no file that is open for reading alone
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):  # the other has it, or has just removed it
            alone = False
        except OSError:
            alone = True  # a file system without locks: a second run there is not noticed
        if not alone:
            raise StateConflict(f"another command is writing to {out}", hint=hint, hop="client")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    out.rmdir()


@dataclass(frozen=True, slots=True)
class JobFile:
    """The hidden file `DIR/.ddib-job-REQUEST_ID.json`, from before submission until all results are here."""

    request_id: str
    items: tuple[FileItem, ...]

    def path(self, out: Path) -> Path:
        return out / f"{STATE_PREFIX}{self.request_id}.json"

    def save(self, out: Path) -> None:
        kept = [field.name for field in fields(FileItem) if field.compare]
        items = [{name: getattr(item, name) for name in kept} for item in self.items]
        values = {"format": 1, "request_id": self.request_id, "items": items}
        write_file(self.path(out), json.dumps(values, indent=1).encode(), private=True)

    def remove(self, out: Path) -> None:
        self.path(out).unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> JobFile:
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            items = tuple(FileItem(**item) for item in values["items"])
            return cls(values["request_id"], items)
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = f"remove {path}; its job is then not attached to any more, and its items get numbers"
            raise ConfigError(f"{path} cannot be read", hint=hint) from error


@dataclass(frozen=True, slots=True)
class Delivered:
    """One result on the disk: its files and its record."""

    item: int
    file: str
    files: Mapping[Part, Path]
    record: Path
    provenance: Record


def check_free(items: Sequence[FileItem], inputs: Iterable[Path], out: Path, *, force: bool) -> None:
    """Raise if writing the results of these items would overwrite a file or one of the `inputs`."""
    read = {_place_of(path) for path in inputs} - {None}
    for item in items:
        for name, is_shared in item.file_names():
            path = out / name
            if not path.exists():
                continue
            if _place_of(path) in read:
                raise UsageError(f"the result would replace the input {path}", hint="another --out folder")
            if not (force or is_shared):
                raise AlreadyExists(
                    f"{path} is there already, and is no result of this request for {item.file}",
                    hint="choose another --out folder, or add --force, which translates everything again",
                )


def _place_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def keep_calibration(out: Path, job: pb.Job) -> None:
    """Keep the calibration of a job beside its results: `ddib evaluate` shows what its map alone makes of a picture."""
    if job.calibration:
        write_file(out / CALIBRATION_FILE, job.calibration, private=True)


def write_results(
    client: Client,
    job_id: str,
    results: Iterable[JobResult],
    items: Sequence[FileItem],
    out: Path,
    without: Collection[int] = (),
    **how: Any,
) -> Iterator[Delivered]:
    """Write results as they come, and acknowledge items once they are on the disk, some at a time.

    Args:
        client: Whose node has the results.
        job_id: The job.
        results: What `client` fetches of it.
        items: What the job's items are called; others get their number.
        out: Folder of the results.
        without: Numbers of items that are left at the node.
        how: Further arguments of `write_result`.
    """
    written: list[tuple[int, bytes]] = []
    for result in results:
        if result.item in without:
            continue
        item = FileItem(f"item-{result.item:04}", f"item-{result.item:04}")
        if result.item < len(items):
            item = items[result.item]
            if result.provenance.input_sha256 != item.sha256:
                raise ChunkCorrupt(f"item {result.item} is not a translation of {item.file}")
        try:
            delivered = write_result(result, item, out, **how)
        except OSError as error:
            kept = f"the node keeps the rest of job {job_id}"
            raise not_written(
                error, out, kept if client.keeps_jobs else "what was written before is complete"
            ) from error
        written.append((result.item, result.translation.sha256))
        if len(written) >= ACKNOWLEDGED_TOGETHER:
            client.acknowledge(job_id, written)
            written = []
        yield delivered
    if written:
        client.acknowledge(job_id, written)


def not_written(error: OSError, out: Path, kept: str) -> DdibError:
    """The error about a file that cannot be written; `kept` says what there is of the others."""
    place, full = error.filename or out, is_disk_full(error)
    first = f"df -h {shlex.quote(str(out))}" if full else f"namei -l {shlex.quote(str(place))}"
    return (DiskFull if full else InputError)(
        f"{place} cannot be written: {error.strerror or error}; {kept}",
        hop="client",
        hint=f"{first}, then: the same command again",
    )


def write_result(
    result: JobResult,
    item: FileItem,
    out: Path,
    *,
    credentials: Credentials | None = None,
    force: bool = False,
) -> Delivered:
    """Write the files of a result, and its record last: the one place where a result becomes files."""
    files = {part: out / item.file_name(part, file.suffix) for part, file in result.files.items()}
    record = out / f"{item.name}.json"
    if not force:
        _check_ours(record, item, result)
    # Of a run that was killed before the record the same content is there; marked, a translation never is again.
    marked = {Part.TRANSLATION} if credentials is not None and item.sha256 else set()
    for part, path in () if force else files.items():
        if part not in marked and path.exists() and not has_sha256(path, result.files[part].sha256.hex()):
            raise AlreadyExists(
                f"{path} exists already, with other content", hint="choose another --out, or add --force"
            )
    make_private_folders(record.parent)
    written = {}
    for part, path in files.items():
        data = result.files[part].data
        if part is Part.TRANSLATION and credentials is not None:
            from ddib_fed.formats.credentials import mark

            if path.suffix.lower() == ".png":
                data = mark(data, result.provenance, credentials)
        write_file(path, data, private=True)
        written[part.value] = WrittenFile(file=path.name, sha256=hashlib.sha256(data).hexdigest())
    provenance = result.provenance.with_(
        input=item.file, files=written, asked_sha256=item.asked or None
    ).judged()
    write_file(record, provenance.to_json(), private=True)
    return Delivered(result.item, item.file, files, record, provenance)


def _check_ours(record: Path, item: FileItem, result: JobResult) -> None:
    """Raise unless the record's place is free, or has one of the same request for the same input."""
    if not os.path.lexists(record):
        return
    found = Record.read(record)
    wanted = item.asked or None, result.provenance.input_sha256
    if found is None or (found.asked_sha256 or None, found.input_sha256) != wanted:
        raise AlreadyExists(
            f"{record} exists already, and is no record of this result",
            hint="choose another --out, or add --force",
        )


def finished(items: Sequence[FileItem], out: Path) -> Iterator[Delivered]:
    """The results of these files that are on the disk already, by their place in `items`."""
    for number, item in enumerate(items):
        path = out / f"{item.name}.json"
        record = Record.read(path) if item.asked and path.exists() else None
        if record is None or Part.TRANSLATION not in record.files:
            continue
        if (record.asked_sha256, record.input_sha256) != (item.asked, item.sha256):
            continue
        written = {part: record.files[part] for part in Part if part in record.files}
        files = {part: path.parent / file.file for part, file in written.items()}
        if all(has_sha256(files[part], file.sha256) for part, file in written.items()):
            yield Delivered(number, item.file, files, path, record)


def unfinished(items: Sequence[FileItem], out: Path) -> list[JobFile]:
    """The unfinished jobs in a folder that have one of these items as it is now."""
    current = set(items)
    found = (JobFile.read(path) for path in sorted(out.glob(f"{STATE_PREFIX}*.json")))
    return [job for job in found if not current.isdisjoint(job.items)]


def remove_broken(out: Path, items: Sequence[FileItem]) -> None:
    """Remove what a killed run was writing: hidden files that never got the name of a result of these files."""
    names = {Path(item.name).name for item in items}
    for folder in {(out / item.name).parent for item in items} | {out}:
        for path in folder.glob(".*") if folder.is_dir() else ():
            if not (meant := _TEMPORARY.fullmatch(path.name)) or not path.is_file():
                continue
            stem = Path(meant[1]).stem
            for part in Part:
                stem = stem.removesuffix(f".{part.value}")
            if stem in names or _OURS.fullmatch(meant[1]):
                path.unlink(missing_ok=True)


def records_of(job_id: str, out: Path) -> int:
    return sum(job_id.encode() in path.read_bytes() for path in out.rglob("*.json") if path.name[0] != ".")

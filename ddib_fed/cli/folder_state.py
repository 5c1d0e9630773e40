"""Reads every file once before anything is submitted: the one place where a path becomes the bytes of an item.

Only digests stay in memory; a file is read again when its job is submitted. All bad files are named at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddib_fed.cli.delivery import STATE_PREFIX, Delivered, Input, JobFile, WriteOptions, durable_folder
from ddib_fed.cli.inputs import Chosen
from ddib_fed.cli.output import next_steps
from ddib_fed.cli.progress import Progress
from ddib_fed.client.client import Client, JobRequest
from ddib_fed.client.payload import Payload, payload
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import JobView, Media, require_finished
from ddib_fed.engine.record import Part, Translation
from ddib_fed.errors import (
    Cancelled,
    DdibError,
    FilesLeftOut,
    ImageUnreadable,
    InputError,
    JobFailed,
    StateConflict,
    error_class,
)
from ddib_fed.files import has_sha256
from ddib_fed.guidance import Guidance
from ddib_fed.protocol.messages import ItemState, JobState, Settings

LOCK = ".ddib-translate.lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Inside, this process alone writes results to a folder, which is made if it is missing."""
    made = not out.exists()
    durable_folder(out)
    descriptor = _take(out / LOCK)
    try:
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with suppress(OSError):
                out.rmdir()


def _take(path: Path) -> int:
    """The open and locked file at a path, with this process in it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise StateConflict(
                f"another command is writing to {path.parent} ({owner or 'it has just begun'})",
                hint="wait for it to end, or choose another --out folder",
                hop="client",
            ) from None
        except OSError:  # a file system without locks: a second run there is not noticed
            return descriptor
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its owner has removed it meanwhile
    with suppress(OSError):  # a full disk: only the message to others lacks the owner
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def request_of(target: str, asked: Mapping[str, Any], solver: Settings | None = None) -> JobRequest:
    """The request from the options of a command, or from these and the solver of two models in one process."""
    return JobRequest(
        target,
        solver
        or Settings(
            asked["solver"], 0, asked["evaluations"], asked["grid"], asked["depth"], asked["encoder"]
        ).of_quality(asked["quality"]),
        cycle=asked["cycle"],
        keep_latent=asked["keep_latent"],
        source_class=asked["source_class"],
        target_class=asked["target_class"],
        guidance=Guidance(asked["guidance"], asked["classifier_scale"], clip=bool(asked["clip"])),
        no_calibration=asked["no_calibration"],
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What all files of a command have in common."""

    profile: Profile
    request: JobRequest
    write: WriteOptions
    progress: Progress

    @property
    def digest(self) -> str:
        return self.request.digest(self.profile.institution)

    def opened(self) -> AbstractContextManager[Client]:
        return self.progress.opened(self.profile)


MOST_LISTED = 1000
MOST_NAME = 255 - 18
"""Bytes of a file's name, less those of the hidden name under which it is written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as an item of a job."""

    path: Path
    given: Input
    item: Payload
    classes: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that is not translated, and why."""

    path: Path
    reason: str
    why: str
    error: DdibError | None = field(default=None, compare=False)

    @classmethod
    def of(cls, path: Path, error: DdibError) -> LeftOut:
        why = error.detail.replace(f"{path}: ", "").replace(f"{path} ", "").strip()
        return cls(path, error.reason, why, error)

    def as_error(self, hop: str) -> DdibError:
        return self.error or error_class(self.reason)(self.why, hop=hop)

    def line(self) -> str:
        return f"{self.path}: {self.why}  [{self.reason}]"

    def as_json(self) -> dict[str, object]:
        return {"file": self.path, "reason": self.reason, "why": self.why}


def read_files(
    chosen: Chosen,
    work: Work,
    *,
    decode: bool = False,
    on_read: Callable[[int, int], None] | None = None,
) -> tuple[list[Entry], list[tuple[Path, DdibError]]]:
    """Read each file; those that can be sent, and the bad ones with what is wrong."""
    entries: list[Entry] = []
    bad: list[tuple[Path, DdibError]] = []
    for number, (path, given) in enumerate(zip(chosen.paths, chosen.inputs, strict=True)):
        classes = chosen.classes[number] if chosen.classes else None
        try:
            _check_name(given, path)
            item = payload(path)
            if decode:
                _check_picture(item)
        except DdibError as error:
            bad.append((path, error.kept()))
        except OSError as error:
            bad.append((path, InputError(f"{path} cannot be read: {error.strerror or error}", hop="client")))
        else:
            asked = work.request.digest(work.profile.institution, (classes,) if classes else ())
            named = replace(given, sha256=item.sha256.hex(), asked=asked)
            entries.append(Entry(path, named, item, classes))
        if on_read is not None:
            on_read(number + 1, len(chosen.paths))
    return entries, bad


def _check_name(given: Input, path: Path) -> None:
    """Return if results can have this name."""
    try:
        longest = max(len(Path(name).name.encode()) for name, _ in given.file_names())
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: its name is no UTF-8", hint="rename it", hop="client") from error
    if longest > MOST_NAME:
        raise InputError(f"{path}: its name is too long for its results", hint="rename it", hop="client")


def _check_picture(item: Payload) -> None:
    """Return if it is no picture, or one that can be decoded."""
    if item.media is Media.NPY:
        return
    try:
        from ddib_fed.data.decoding import ImageLimits
        from ddib_fed.data.pictures import decode_image

        decode_image(item.read(), ImageLimits(max_bytes=item.size_bytes + 1))
    except ImageUnreadable:
        raise
    except DdibError:
        pass  # too large for the usual limits: the node has its own


def refused(bad: Sequence[tuple[Path, DdibError]], total: int, state: str, *, unnamed: int = 0) -> DdibError:
    """The error that names every bad file; of one file alone its own."""
    if total == 1:
        return bad[0][1]
    kinds = {type(error) for _, error in bad}
    kind = kinds.pop() if len(kinds) == 1 else InputError
    detail = f"{len(bad) + unnamed:,} of {total:,} files cannot be translated; {state}:\n" + listed(
        (LeftOut.of(path, error) for path, error in bad), unnamed
    )
    first = bad[0][1].hint if len(bad) == 1 else ""
    more = f"without {'it' if len(bad) == 1 else 'them'}: the same command with --skip-bad"
    # What else the errors say of one file does not hold for all.
    return kind(detail, hint=f"{first}\n{more}" if first else more, hop=bad[0][1].hop)


def left_out(found: Sequence[LeftOut], total: int, state: str) -> FilesLeftOut:
    """The error that a command ends with which left out these files; `state` is what became of the others."""
    steps = next_steps(each.as_error("client") for each in found) or "repair them"
    return FilesLeftOut(
        f"left out: {len(found):,} of {total:,} files; {state}:\n{listed(found)}",
        hint=f"{steps}\nthen, for what is missing: the same command again",
    )


def listed(found: Iterable[LeftOut], unnamed: int = 0) -> str:
    """Lines that name files, the first `MOST_LISTED` of them; `unnamed` is how many more there are without a name."""
    lines = [f"  {each.line()}" for each in found]
    more = max(0, len(lines) - MOST_LISTED) + unnamed
    return "\n".join([*lines[:MOST_LISTED], *([f"  and {more:,} more"] if more else [])])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the files of one command."""

    total: int
    entries: tuple[Entry, ...]
    delivered: tuple[Delivered, ...]
    earlier: int
    jobs: tuple[JobView, ...]
    left_out: tuple[LeftOut, ...]
    failed: tuple[LeftOut, ...]
    not_submitted: tuple[Path, ...] = ()


def require_translated(outcome: Outcome, hop: str, *, skip_bad: bool) -> None:
    """Return if every job succeeded; with `skip_bad`, also if only some of its items failed."""
    bad = [*outcome.left_out, *outcome.failed]
    rest = len(outcome.not_submitted)
    unsent = f"{rest:,} of {outcome.total:,} files {'was' if rest == 1 else 'were'} not submitted"
    for job in outcome.jobs:
        if skip_bad and (job.state is JobState.FINISHED or failed_by_items(job)):
            continue
        try:
            require_finished(job, hop)
        except (JobFailed, Cancelled) as error:
            error.detail += (f"; {unsent}" if rest else "") + (f"\n{listed(bad)}" if bad else "")
            error.args = (error.detail,)
            if bad:
                without = "the same command with --skip-bad" if len(bad) < outcome.total else ""
                others = f"without {'it' if len(bad) == 1 else 'them'}: {without}" if without else ""
                steps = next_steps(each.as_error(hop) for each in bad)
                error.hint = "\n".join(filter(None, [steps, others, error.hint]))
            if rest:
                error.hint = "\n".join(filter(None, [error.hint, "the rest: the same command again"]))
            raise
    if rest:
        raise JobFailed(unsent, hop="client", hint="the same command again")


def failed_by_items(job: JobView) -> bool:
    return job.state is JobState.FAILED and all(item.state is ItemState.FAILED for item in job.items)


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

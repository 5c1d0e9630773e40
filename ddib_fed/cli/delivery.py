"""Writes fetched results and their provenance; keeps the file names, which never leave this machine.

A result is acknowledged only when its files and their folder are on the disk; an existing result is
overwritten only on request, and an input never.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed.client.client import Client
from ddib_fed.client.views import Media, Result
from ddib_fed.engine.record import DOUBTFUL_BELOW, Part, Translation, WrittenFile, file_name
from ddib_fed.errors import (
    AlreadyExists,
    Cancelled,
    ChunkCorrupt,
    ConfigError,
    DdibError,
    DeadlineExceeded,
    DiskFull,
    InputError,
    JobNotFound,
    UnavailableError,
    UsageError,
)
from ddib_fed.files import is_disk_full, sync_folder, write_file
from ddib_fed.names import nearest

if TYPE_CHECKING:
    from ddib_fed.formats.credentials import Credentials


STATE_PREFIX = ".ddib-job-"
ACKNOWLEDGED_TOGETHER = 16
"""Items. One that was written and not acknowledged is fetched again after an interruption, and found to be the same."""


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """Where a command writes results, and how.

    Attributes:
        out: Their folder.
        force: Overwrite what does not match.
        again: Translate also what is there already.
        skip_bad: Leave out what cannot be translated, instead of doing nothing.
        doubtful_below: PSNR of a round trip in dB below which a result is marked.
        credentials: What content credentials are signed with.
        keep_parts: Keep the items of studies and their results.
    """

    out: Path
    force: bool = False
    again: bool = False
    skip_bad: bool = False
    doubtful_below: float = DOUBTFUL_BELOW
    credentials: Credentials | None = None
    keep_parts: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """The local names of an item."""

    name: str
    file: str
    sha256: str = ""
    source: str = ""
    asked: str = ""

    def file_name(self, part: Part, media: Media) -> str:
        """The file name of a part."""
        if self.source and part in {Part.SOURCE, Part.TRANSLATION}:
            return f"{self.source if part is Part.SOURCE else self.name}.PNG"
        return file_name(self.name, part, media)

    def file_names(self) -> Iterator[tuple[str, bool]]:
        """Every possible file name of its results, and whether other items may share the file."""
        yield f"{self.name}.json", False
        for part in Part:
            for media in Media:
                yield self.file_name(part, media), bool(self.source) and part is Part.SOURCE


@dataclass(frozen=True, slots=True)
class JobFile:
    """The hidden file `DIR/.ddib-job-REQUEST_ID.json`, from before submission until all results are here."""

    request_id: str
    target: str
    inputs: tuple[Input, ...]

    def path(self, out: Path) -> Path:
        return out / f"{STATE_PREFIX}{self.request_id}.json"

    def save(self, out: Path) -> None:
        text = json.dumps({"format": 1, **asdict(self)}, indent=1)
        write_file(self.path(out), text.encode(), private=True)

    def remove(self, out: Path) -> None:
        self.path(out).unlink(missing_ok=True)

    @classmethod
    def load(cls, out: Path, request_id: str) -> JobFile | None:
        path = out / f"{STATE_PREFIX}{request_id}.json"
        return cls.read(path, otherwise="items get numbers") if path.exists() else None

    @classmethod
    def read(cls, path: Path, *, otherwise: str = "its job is not attached to any more") -> JobFile:
        """The content of such a file; `otherwise` is what happens without it."""
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            inputs = tuple(Input(**item) for item in values["inputs"])
            return cls(values["request_id"], values["target"], inputs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read", hint=f"remove {path}; {otherwise}") from error


@dataclass(frozen=True, slots=True)
class Delivered:
    """One result on the disk: its files and its record."""

    item: int
    file: str
    files: dict[Part, Path]
    record: Path
    provenance: Translation


def check_names(paths: Sequence[Path], inputs: Sequence[Input], out: Path) -> None:
    """Check that every result has a unique name."""
    owner: dict[str, int] = {}
    for number, given in enumerate(inputs):
        for name, is_shared in given.file_names():
            first = paths[owner.setdefault(name, number)]
            if owner[name] != number and not (is_shared and first == paths[number]):
                apart = "give their common parent folder, or " if first.parent != paths[number].parent else ""
                raise UsageError(
                    f"{first} and {paths[number]} would both be written to {out / name}",
                    hint=f"{apart}rename one of them",
                )


def check_free(paths: Sequence[Path], inputs: Sequence[Input], out: Path, *, force: bool) -> None:
    """Check that writing results overwrites nothing."""
    read = {_place_of(path) for path in paths} - {None}
    for given in inputs:
        for name, is_shared in given.file_names():
            path = out / name
            if not path.exists():
                continue
            if _place_of(path) in read:
                raise UsageError(f"the result would replace the input {path}", hint="another --out folder")
            if not (force or is_shared):
                raise AlreadyExists(
                    f"{path} is there already, and is no result of this request for {given.file}",
                    hint="choose another --out folder, or add --force, which makes again what does not match",
                )


def _place_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def deliver(
    client: Client,
    job_id: str,
    results: Iterable[Result],
    inputs: Sequence[Input],
    write: WriteOptions,
    *,
    without: Collection[int] = (),
) -> Iterator[Delivered]:
    """Write results as they come, and acknowledge items once they are on the disk, some at a time."""
    out = write.out
    with _saying_what_is_left(client, job_id, out):
        durable_folder(out)
    written: list[tuple[int, bytes]] = []
    for result in results:
        if result.item in without:
            continue
        known = inputs[result.item] if result.item < len(inputs) else None
        if known is not None and result.provenance.input_sha256 != known.sha256:
            raise ChunkCorrupt(f"item {result.item} is not a translation of {known.file}")
        given = known or _numbered(result)
        with _saying_what_is_left(client, job_id, out):
            delivered = write_result(result, given, write)
        written.append((result.item, result.translation.sha256))
        if len(written) >= ACKNOWLEDGED_TOGETHER:
            client.acknowledge(job_id, written)
            written = []
        yield delivered
    if written:
        client.acknowledge(job_id, written)


@contextlib.contextmanager
def _saying_what_is_left(client: Client, job_id: str, out: Path) -> Iterator[None]:
    """Inside, a file that cannot be written ends the command with the one that fetches the rest."""
    try:
        yield
    except OSError as error:
        full = is_disk_full(error)
        job, where = shlex.quote(job_id), shlex.quote(str(out))
        rest, kept = "the same command again", "what was written before is complete"
        if client.keeps_jobs:
            rest = f"ddib job fetch {job} --out {where} --profile {shlex.quote(str(client.profile.path))}"
            kept = f"the node keeps the rest of job {job_id}"
        first = f"df -h {where}" if full else f"namei -l {shlex.quote(str(error.filename or out))}"
        raise (DiskFull if full else InputError)(
            f"{error.filename or out} cannot be written: {error.strerror or error}; {kept}",
            hop="client",
            hint=f"{first}, then: {rest}",
        ) from error


def records_of(job_id: str, out: Path) -> int:
    return sum(job_id.encode() in path.read_bytes() for path in out.rglob("*.json") if path.name[0] != ".")


def _numbered(result: Result) -> Input:
    name = f"item-{result.item:04}"
    return Input(name, name, result.provenance.input_sha256)


def write_result(result: Result, given: Input, write: WriteOptions) -> Delivered:
    """Write the files of a result, and its record last: the one place where a result becomes files."""
    out, force = write.out, write.force
    files = {part: out / given.file_name(part, file.media) for part, file in result.files.items()}
    durable_folder((out / given.name).parent)
    written = {}
    for part, path in files.items():
        own = result.files[part]
        data = (
            _content(path, own.data, result.provenance, write.credentials)
            if part is Part.TRANSLATION
            else own.data
        )
        same = path.exists() and _digest(path) == own.sha256
        write_durably(path, data, force=force or same, private=part is Part.LATENT)
        digest = hashlib.sha256(data).hexdigest() if data is not own.data else own.sha256.hex()
        written[part.value] = WrittenFile(file=path.name, sha256=digest)
    record = result.provenance.with_(
        input=given.file, files=written, asked_sha256=given.asked or None
    ).judged(write.doubtful_below)
    path = out / f"{given.name}.json"
    write_durably(path, record.to_json(), force=force)
    return Delivered(result.item, given.file, files, path, record)


def _content(path: Path, data: bytes, made: Translation, credentials: Credentials | None) -> bytes:
    """What is written of a translation: with content credentials where they are asked, or what holds them already."""
    if credentials is None and not path.exists():
        return data
    from ddib_fed.formats.credentials import MEDIA_TYPES, mark, without_mark

    suffix = path.suffix
    if suffix.lower() not in MEDIA_TYPES:
        return data
    there = path.read_bytes() if path.exists() else b""
    if there != data and without_mark(there, suffix) == data:
        return there
    return data if credentials is None else mark(data, suffix, made, credentials)


def durable_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each of which is on the disk afterwards."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def write_durably(path: Path, data: bytes, *, force: bool, private: bool = False) -> None:
    """Write a file atomically and flush it to the disk; writing the same content again is allowed."""
    if path.exists() and not force:
        if _digest(path) == hashlib.sha256(data).digest():
            return
        raise AlreadyExists(
            f"{path} exists already, with other content", hint="choose another --out, or add --force"
        )
    write_file(path, data, private=private)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextlib.contextmanager
def named(out: Path, job_file: JobFile) -> Iterator[None]:
    """Keep the names on the disk; a job that could not be submitted leaves nothing behind."""
    durable_folder(out)
    job_file.save(out)
    try:
        yield
    except (UnavailableError, DeadlineExceeded, Cancelled):
        raise  # the node may have accepted the job although its answer was lost
    except Exception:
        job_file.remove(out)
        raise


_WHOLE = re.compile(r"[0-9a-f]{32}")
LOOKED_AT = 1000
"""Newest jobs among which a beginning is looked for: as many as a node lists."""
NAMED = 10


def job_named(client: Client, text: str) -> str:
    """The id of the job whose id is `text` or begins with it; a whole id is not looked up."""
    if _WHOLE.fullmatch(text):
        return text
    known = [job.job_id for job in client.list(LOOKED_AT)]
    found = [text] if text in known else [each for each in known if text and each.startswith(text)]
    if not found:
        close = nearest(text, known)
        raise JobNotFound(
            f"no job of this client begins with {text[:64]!a}",
            hop=client.hop,
            hint=f"did you mean {close}? `ddib job list` lists the jobs" if close else "ddib job list",
        )
    if len(found) > 1:
        more = ", ..." if len(found) > NAMED else ""
        raise UsageError(
            f"{len(found)} jobs begin with {text[:64]!a}", hint=f"one of {', '.join(found[:NAMED])}{more}"
        )
    return found[0]


def suggest_target(error: DdibError, client: Client, target: str) -> None:
    """Put the nearest target that the node lists into the hint of an error about one that it does not know."""
    try:
        known = [each.target for each in client.domains().targets if each.domain]
    except DdibError:
        return
    close = nearest(target, known)
    if target not in known and close:
        error.hint = f"did you mean {close}? `ddib domains` lists the targets"

"""The files of a run: which they are, what their results are called, and what each holds.

Every file is read once before anything is submitted, and only its digest stays in memory. All bad files are named at
once.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddib_fed.client.client import JobRequest
from ddib_fed.client.payload import Payload, payload
from ddib_fed.client.views import Media
from ddib_fed.engine.record import Part, file_name
from ddib_fed.errors import (
    DdibError,
    FileMissing,
    FilesLeftOut,
    ImageUnreadable,
    InputError,
    UsageError,
    error_class,
    next_steps,
)
from ddib_fed.formats.recognition import TAKEN, files_below, format_of
from ddib_fed.names import names_apart

MOST_LISTED = 1000
"""Bad files that an error names."""
MOST_NAME = 255 - 18
"""Bytes of a file's name, less those of the hidden name under which it is written."""


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file to translate.

    Attributes:
        name: Of its results below the run's folder, without suffix.
        file: What reports and the record call it.
        sha256: Of its bytes, hex.
        source: With --pairs, the name of the picture as the source's model saw it.
        asked: Digest of the request, hex.
    """

    name: str
    file: str
    sha256: str = ""
    source: str = ""
    asked: str = ""
    path: Path = field(default=Path(), compare=False)
    classes: tuple[str, str] | None = field(default=None, compare=False)
    payload: Payload | None = field(default=None, compare=False)

    def file_name(self, part: Part, media: Media) -> str:
        if self.source and part in {Part.SOURCE, Part.TRANSLATION}:
            return f"{self.source if part is Part.SOURCE else self.name}.PNG"
        return file_name(self.name, part, media)

    def file_names(self) -> Iterator[tuple[str, bool]]:
        """Every possible file name of its results, and whether other items may share the file."""
        yield f"{self.name}.json", False
        for part in Part:
            for media in Media:
                yield self.file_name(part, media), bool(self.source) and part is Part.SOURCE


def find_items(
    given: Sequence[Path], out: Path | None = None, *, taken: Iterable[str] = (), without: Iterable[Path] = ()
) -> tuple[list[FileItem], list[str]]:
    """The files that are given, and those below folders but for `out`, each once; and what has to be said of them."""
    elsewhere = {path.absolute() for path in without}
    ignored: Counter[str] = Counter()
    found: dict[Path, tuple[Path, str]] = {}
    for path in given:
        if not path.is_dir():
            found.setdefault(path.absolute(), (path, path.name))
            continue
        below = [file for file in _below(path, out, ignored) if file.absolute() not in elsewhere]
        if not below:
            known, quoted = ", ".join(sorted(TAKEN)), shlex.quote(str(path))
            hint = f"known are {known}; `ls -la {quoted}` shows what is there"
            raise FileMissing(f"{path} holds no file to translate", hint=hint, hop="client")
        for file in below:
            found.setdefault(file.absolute(), (file, file.relative_to(path).as_posix()))
    files = [file for _, file in found.values()]
    names = names_apart(files, lambda name: (each for each, _ in FileItem(name, "").file_names()), taken)
    items = [
        FileItem(name, file, path=path) for name, (path, file) in zip(names, found.values(), strict=True)
    ]
    longer = [f"{i.file} as {i.name}" for i in items if i.name != i.file.removesuffix(Path(i.file).suffix)]
    clash = f"named by their suffix too, as results would clash: {', '.join(longer)}" if longer else ""
    return items, [line for line in (ignored_line(ignored), clash) if line]


def ignored_line(ignored: Counter[str]) -> str:
    """What was left out below folders, for people; empty for nothing."""
    count = ignored.total()
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in ignored.most_common(6))
    return f"ignored {count:,} other file{'s' * (count != 1)} ({kinds})" if count else ""


def _below(root: Path, out: Path | None, ignored: Counter[str]) -> list[Path]:
    below = files_below(root, out)
    ignored += below.ignored
    found = list(below.unreadable)
    for path in below.files:
        suffix = path.suffix.lower()
        if format_of(path) is not None:
            continue
        if suffix in TAKEN:
            found.append(path)
        else:
            ignored[suffix or "without suffix"] += 1
    return sorted(found)


def check_names(items: Sequence[FileItem], out: Path) -> None:
    owner: dict[str, FileItem] = {}
    for item in items:
        for name, is_shared in item.file_names():
            first = owner.setdefault(name, item)
            if first is not item and not (is_shared and first.path == item.path):
                apart = (
                    "" if first.path.parent == item.path.parent else "give their common parent folder, or "
                )
                raise UsageError(
                    f"{first.path} and {item.path} would both be written to {out / name}",
                    hint=f"{apart}rename one of them",
                )


@dataclass(frozen=True, slots=True)
class LeftOut:
    path: Path
    reason: str
    why: str
    error: DdibError | None = field(default=None, compare=False)

    @classmethod
    def of(cls, path: Path, error: DdibError) -> LeftOut:
        why = error.detail.replace(f"{path}: ", "").replace(f"{path} ", "").strip()
        return cls(path, error.reason, why, error.kept())

    def as_error(self, hop: str) -> DdibError:
        return self.error or error_class(self.reason)(self.why, hop=hop)

    def line(self) -> str:
        return f"{self.path}: {self.why}  [{self.reason}]"

    def as_json(self) -> dict[str, object]:
        return {"file": self.path, "reason": self.reason, "why": self.why}


def read_items(
    items: Sequence[FileItem],
    request: JobRequest,
    institution: str,
    *,
    decode: bool = False,
    on_read: Callable[[int, int], None] | None = None,
) -> tuple[list[FileItem], list[LeftOut]]:
    """Read each file; those that can be sent, with their digests, and the bad ones."""
    read: list[FileItem] = []
    bad: list[LeftOut] = []
    for number, item in enumerate(items):
        try:
            _check_name(item)
            found = payload(item.path)
            if decode and found.media is not Media.NPY:
                _check_picture(found)
        except DdibError as error:
            bad.append(LeftOut.of(item.path, error))
        except OSError as error:
            why = f"{item.path} cannot be read: {error.strerror or error}"
            bad.append(LeftOut.of(item.path, InputError(why, hop="client")))
        else:
            asked = request.digest(institution, (item.classes,) if item.classes else ())
            read.append(replace(item, sha256=found.sha256.hex(), asked=asked, payload=found))
        if on_read is not None:
            on_read(number + 1, len(items))
    return read, bad


def _check_name(item: FileItem) -> None:
    try:
        longest = max(len(Path(name).name.encode()) for name, _ in item.file_names())
    except UnicodeEncodeError as error:
        raise InputError(f"{item.path}: its name is no UTF-8", hint="rename it", hop="client") from error
    if longest > MOST_NAME:
        raise InputError(f"{item.path}: its name is too long for its results", hint="rename it", hop="client")


def _check_picture(item: Payload) -> None:
    from ddib_fed.data.pictures import ImageLimits, decode_image

    try:
        decode_image(item.read(), ImageLimits(max_bytes=item.size_bytes + 1))
    except ImageUnreadable:
        raise
    except DdibError:
        pass  # too large for the usual limits: the node has its own


def refused(bad: Sequence[LeftOut], total: int, state: str) -> DdibError:
    """The error that names every bad file; of one file alone its own."""
    errors = [each.as_error("client") for each in bad]
    if total == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else InputError
    detail = f"{len(bad):,} of {total:,} files cannot be translated; {state}:\n{listed(bad)}"
    first = errors[0].hint if len(bad) == 1 else ""
    more = f"without {'it' if len(bad) == 1 else 'them'}: the same command with --skip-bad"
    # What else the errors say of one file does not hold for all.
    return kind(detail, hint=f"{first}\n{more}" if first else more, hop=errors[0].hop)


def left_out(found: Sequence[LeftOut], total: int, state: str) -> FilesLeftOut:
    """The error that a command ends with which left out these files; `state` is what became of the others."""
    steps = next_steps(each.as_error("client") for each in found) or "repair them"
    return FilesLeftOut(
        f"left out: {len(found):,} of {total:,} files; {state}:\n{listed(found)}",
        hint=f"{steps}\nthen, for what is missing: the same command again",
    )


def listed(found: Iterable[LeftOut]) -> str:
    """Lines that name files."""
    lines = [f"  {each.line()}" for each in found]
    more = [f"  and {len(lines) - MOST_LISTED:,} more"] if len(lines) > MOST_LISTED else []
    return "\n".join([*lines[:MOST_LISTED], *more])

"""The files of a command: which they are, what their results are called, and what each holds.

Every file is read once before anything is submitted, and only its digest stays in memory; it is read again for every
try. All bad files are named at once. File names stay here: an item is a number, a media type, a size and a digest. So
do headers of DICOM, NIfTI and georeferenced TIFFs: `payload` is the only way to an item, and refuses them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed import errors, recognition
from ddib_fed.names import names_apart
from ddib_fed.record import MOST_TILES, Part, file_name
from ddib_fed.terminal import explained
from ddib_fed.v1 import common_pb2

if TYPE_CHECKING:
    from ddib_fed.data.study import Studies
    from ddib_fed.protocol.messages import Domains

MAX_ITEM_BYTES = 1 << 30
"""The client's limit on one item; the node's own limit is usually lower, and in its refusal."""
MOST_LISTED = 1000
MOST_NAME = 255 - 18  # bytes of a file's name, less those of the hidden name under which it is written
LEAST_TILE = 8  # pixels of a tile's side
SUFFIXES = {
    common_pb2.MEDIA_TYPE_NPY: ".npy",
    common_pb2.MEDIA_TYPE_PNG: ".png",
    common_pb2.MEDIA_TYPE_JPEG: ".jpg",
    common_pb2.MEDIA_TYPE_TIFF: ".tif",
}
_MEDIA = {suffix: media for media, suffix in SUFFIXES.items()}
_NPY = (
    "numpy.save writes such a file: points (N, D), one picture (H, W) or (H, W, C), or one volume (D, H, W)"
)


@dataclass(frozen=True, slots=True)
class Payload:
    suffix: str
    size_bytes: int
    sha256: bytes
    origin: Path | bytes

    def read(self) -> bytes:
        """The bytes, unchanged since the first read."""
        data = self.origin if isinstance(self.origin, bytes) else self.origin.read_bytes()
        if len(data) != self.size_bytes or hashlib.sha256(data).digest() != self.sha256:
            raise errors.InputError(
                f"{self.origin!s} changed while it was sent", hint="the same command again"
            )
        return data

    def header(self) -> common_pb2.FileHeader:
        return common_pb2.FileHeader(
            media_type=_MEDIA[self.suffix], size_bytes=self.size_bytes, sha256=self.sha256
        )


Origin = str | Path | bytes | Payload


def payload(origin: Origin) -> Payload:
    """Read one item and determine its type."""
    if isinstance(origin, Payload):
        return origin
    if isinstance(origin, bytes):
        suffix = next((each for each in _MEDIA if origin.startswith(recognition.OPENINGS[each])), ".npy")
        return _checked(suffix, origin, origin)
    path = Path(origin)
    _require_file(path)
    if reader := recognition.reader_of(path):
        raise _kept_here(str(path), reader)
    suffix = path.suffix.lower()
    if suffix not in recognition.TAKEN:
        what, how = recognition.beginning_of(path)
        why = f"is no picture and no points by its name ({', '.join(sorted(recognition.TAKEN))})"
        if torn := next(
            (each for each in recognition.readers() if each.gathers and suffix in each.suffixes), None
        ):
            why = f"does not begin as a {torn.kind} does"
        elif how == recognition.COPY:
            how = "leave it out, or save what it shows as PNG"
        raise errors.InputError(
            "; ".join((f"{path} {why}: it {what}", *recognition.broken_readers())), hop="client", hint=how
        )
    return _checked(recognition.TAKEN[suffix], path, path.read_bytes())


def payloads(origins: Iterable[Origin]) -> list[Payload]:
    items = []
    for number, origin in enumerate(origins):
        try:
            items.append(payload(origin))
        except errors.DdibError as error:
            error.facts["item"] = str(number)
            raise
    return items


def _require_file(path: Path) -> None:
    why, hint = "", ""
    kind: type[errors.DdibError] = errors.InputError
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        why, hint = f"{path} cannot be read", f"ls -ld {shlex.quote(str(path))}"
    elif path.is_dir():
        why, hint = f"{path} is a folder, files are expected", f"{path}/*.png or {path}/*.npy"
    elif not path.exists():
        why, kind = f"there is no {path}", errors.FileMissing
    elif (size := path.stat().st_size) > MAX_ITEM_BYTES:
        why = f"{path} has {size} bytes; at most {MAX_ITEM_BYTES} go into one item"
    if why:
        raise kind(why, hop="client", hint=hint)


def _checked(suffix: str, origin: Path | bytes, data: bytes) -> Payload:
    name = "an item" if isinstance(origin, bytes) else str(origin)
    if not data.startswith(recognition.OPENINGS[suffix]):
        what, how = recognition.beginning(data, Path("FILE") if isinstance(origin, bytes) else origin)
        unreadable = errors.PointsUnreadable if suffix == ".npy" else errors.ImageUnreadable
        raise unreadable(
            f"{name} does not begin as a {suffix} file does: it {what}",
            hop="client",
            hint=_NPY if suffix == ".npy" else how,
        )
    if reader := recognition.reader_of_content(data):
        raise _kept_here(name, reader)
    return Payload(suffix, len(data), hashlib.sha256(data).digest(), origin)


def _kept_here(name: str, reader: recognition.Reader) -> errors.InputError:
    """The error about a file of which pixels alone may leave."""
    file = "FILE" if name == "an item" else shlex.quote(name)
    return errors.InputError(
        f"{name} is a {reader.kind}: its header stays on this machine, and it is not sent as it is",
        hop="client",
        hint=f"ddib translate {file} --to INSTITUTION/DOMAIN --out DIR   (sends pixels alone)",
        facts={"format": reader.kind},
    )


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file to translate; digests are in hex."""

    name: str  # of its results below the run's folder, without suffix
    file: str  # what reports and the record call it
    sha256: str = ""
    source: str = ""  # with pairs of classes, the name of the picture as the source's model saw it
    asked: str = ""  # digest of the request
    path: Path = field(default=Path(), compare=False)
    classes: tuple[str, str] | None = field(default=None, compare=False)
    payload: Payload | None = field(default=None, compare=False)

    @property
    def size_bytes(self) -> int:
        return 0 if self.payload is None else self.payload.size_bytes

    def file_name(self, part: Part, suffix: str) -> str:
        if self.source and part in {Part.SOURCE, Part.TRANSLATION}:
            return f"{self.source if part is Part.SOURCE else self.name}.PNG"
        return file_name(self.name, part, suffix)

    def file_names(self) -> Iterator[tuple[str, bool]]:
        """Every possible file name of its results, and whether other items may share the file."""
        yield f"{self.name}.json", False
        for part in Part:
            for suffix in _MEDIA:
                yield self.file_name(part, suffix), bool(self.source) and part is Part.SOURCE


def items_below(root: Path, paths: Sequence[Path]) -> list[FileItem]:
    """Items of files that are called by their paths below a folder."""
    files = [path.relative_to(root).as_posix() for path in paths]
    named = zip(names_apart(files), files, paths, strict=True)
    return [FileItem(name, file, path=path) for name, file, path in named]


def find_items(
    given: Sequence[Path], out: Path | None = None, *, taken: Iterable[str] = (), without: Iterable[Path] = ()
) -> tuple[list[FileItem], list[str]]:
    """The files that are given, and those below folders but for `out`, each once; and what has to be said of them."""
    elsewhere = {path.absolute() for path in without}
    ignored: Counter[str] = Counter()
    by_path: dict[Path, tuple[Path, str]] = {}
    for path in given:
        if not path.is_dir():
            by_path.setdefault(path.absolute(), (path, path.name))
            continue
        below = [file for file in _below(path, out, ignored) if file.absolute() not in elsewhere]
        if not below:
            known, quoted = ", ".join(sorted(recognition.TAKEN)), shlex.quote(str(path))
            hint = f"known are {known}; `ls -la {quoted}` shows what is there"
            raise errors.FileMissing(f"{path} holds no file to translate", hint=hint, hop="client")
        for file in below:
            by_path.setdefault(file.absolute(), (file, file.relative_to(path).as_posix()))
    files = [file for _, file in by_path.values()]
    names = names_apart(files, lambda name: (each for each, _ in FileItem(name, "").file_names()), taken)
    items = [
        FileItem(name, file, path=path) for name, (path, file) in zip(names, by_path.values(), strict=True)
    ]
    longer = [f"{i.file} as {i.name}" for i in items if i.name != i.file.removesuffix(Path(i.file).suffix)]
    clash = f"named by their suffix too, as results would clash: {', '.join(longer)}" if longer else ""
    return items, [line for line in (_ignored_line(ignored), clash) if line]


def _ignored_line(ignored: Counter[str]) -> str:
    count = ignored.total()
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in ignored.most_common(6))
    return f"ignored {count:,} other file{'s' * (count != 1)} ({kinds})" if count else ""


def _below(root: Path, out: Path | None, ignored: Counter[str]) -> list[Path]:
    below = recognition.files_below(root, out)
    ignored += below.ignored
    kept = list(below.unreadable)
    for path in below.files:
        suffix = path.suffix.lower()
        if recognition.reader_of(path) is not None:
            continue
        if suffix in recognition.TAKEN:
            kept.append(path)
        else:
            ignored[suffix or "without suffix"] += 1
    return sorted(kept)


def check_names(items: Sequence[FileItem], out: Path) -> None:
    """Raise if a result of one item would replace that of another."""
    owner: dict[str, FileItem] = {}
    for item in items:
        for name, is_shared in item.file_names():
            first = owner.setdefault(name, item)
            if first is not item and not (is_shared and first.path == item.path):
                raise errors.UsageError(
                    f"{first.path} and {item.path} would both be written to {out / name}",
                    hint="give their common parent folder, or rename one of them",
                )


def open_inputs(
    files: Sequence[Path],
    out: Path,
    reading: Mapping[str, Any],
    own_domain: Callable[[], Domains],
    say: Callable[[str], object],
) -> tuple[list[FileItem], Studies | None, list[LeftOut]]:
    """Return plain files, studies of the field's formats, none of which is read yet, and errors.

    `reading` has the options `intensity`, `slices` and `tile`; `own_domain` asks the node for its own model, which says
    how volumes, maps and larger pictures are read; `say` gets warnings.
    """
    check_intensity(reading["intensity"])  # before the node is asked
    recognised, auto, source = recognition.recognise(files, out), reading["tile"] == "auto", None
    of_maps = of_pictures = _tile(reading["tile"])
    for line in recognition.broken_readers():
        say(f"warning: {line}")
    if any(not each.reader.is_picture for each in recognised.studies) or (auto and _any_picture(recognised)):
        source = own_domain()
    if auto and source is not None and len(source.sample_shape) == 3:
        of_maps = (source.sample_shape[1], source.sample_shape[2])
        of_pictures = of_maps if source.tiles else None
    most = MOST_TILES if auto else None
    if of_pictures is not None and recognised.plain:
        recognised = recognition.recognise(files, out, recognition.LargerPictures(of_pictures, most))
    left_out: list[LeftOut] = []
    studies, taken, without = None, list[str](), list[Path]()
    if recognised.studies:
        from ddib_fed.data.study import Grid, Options

        intensity, slices, own_rule, volume = reading["intensity"], "axial", "", None
        if source is not None:
            intensity, own_rule = _intensity(intensity, source, say), source.intensity
            slices = _slices(reading["slices"], source, say)
            if source.sample_kind == "volume":
                volume = Grid(tuple(source.sample_shape[1:]), tuple(source.spacing_mm))
        bad: recognition.Bad = []
        options = Options(intensity, slices, of_maps, of_pictures, most, own_rule, volume)
        choice = recognition.open_recognised(recognised, options, bad=bad)
        if line := _ignored_line(choice.ignored):
            say(line)
        files, studies = choice.plain, choice.studies
        left_out = [LeftOut.of(path, error) for path, error in bad]
        for origin in studies.origins:
            taken += [*origin.outputs, *origin.beside, f"{origin.name}.json"]
            without += origin.inputs
    items: list[FileItem] = []
    if files:
        items, lines = find_items(files, out, taken=taken, without=without)
        check_names(items, out)
        for line in lines:
            say(line)
    return items, studies, left_out


def check_intensity(rule: str) -> None:
    """Raise UsageError unless it is "auto", or a rule of intensity."""
    if rule != "auto":
        from ddib_fed.data.study import IntensityRule

        IntensityRule.parse(rule)


def _tile(text: str) -> tuple[int, int] | None:
    if text in {"auto", "none"}:
        return None
    if not text.isdecimal() or not LEAST_TILE <= int(text) <= 65536:
        raise errors.UsageError(f"--tile {text!r} is no size", hint="--tile 256, --tile auto or --tile none")
    return int(text), int(text)


def _any_picture(found: recognition.Recognised) -> bool:
    """Return whether a file might be larger than a model, which is then asked for its size."""
    larger = recognition.LargerPictures((LEAST_TILE, LEAST_TILE))
    below = (recognition.files_below(path, None).files if path.is_dir() else (path,) for path in found.plain)
    return any(each.reader.is_picture for each in found.studies) or any(
        path.suffix.lower() in recognition.TAKEN
        and (path.suffix.lower() != ".npy" or recognition.reader_of(path, larger) is larger)
        for paths in below
        for path in paths
    )


def _intensity(asked: str, source: Domains, say: Callable[[str], object]) -> str:
    """The rule that was asked for; as the source's model says it, where it was trained with the same."""
    from ddib_fed.data.study import AUTO, IntensityRule

    if not source.intensity or asked == AUTO:
        return asked
    rule, own = IntensityRule.parse(asked), IntensityRule.parse(source.intensity)
    if rule == own:
        return source.intensity
    model = f"the model of {source.institution}/{source.domain}"
    if own.name == "hu" and rule.name != "values":
        raise errors.UsageError(
            f"{model} was trained in Hounsfield units, and --intensity {asked} sends other numbers",
            hint="leave --intensity out; --intensity values, if the file's own numbers are Hounsfield units",
        )
    say(f"warning: --intensity {asked}: {model} was trained with {source.intensity}")
    return asked


def _slices(asked: str, source: Domains, say: Callable[[str], object]) -> str:
    """The plane that was asked for, or the one that the source's model was trained with."""
    if asked == "auto":
        return source.slices or "axial"
    if source.sample_kind == "volume":
        say(f"warning: --slices {asked}: {source.institution}/{source.domain} takes whole volumes")
        return "axial"
    if source.slices not in {"", asked}:
        model = f"the model of {source.institution}/{source.domain}"
        say(f"warning: --slices {asked}: {model} was trained on {source.slices} slices")
    return asked


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that cannot be translated, and why."""

    path: Path
    error: errors.DdibError

    @classmethod
    def of(cls, path: Path, error: Exception) -> LeftOut:
        return cls(path, explained(error, path).kept())

    @property
    def reason(self) -> str:
        return self.error.reason

    @property
    def why(self) -> str:
        return self.error.detail.replace(f"{self.path}: ", "").replace(f"{self.path} ", "").strip()

    def line(self) -> str:
        return f"{self.path}: {self.why}  [{self.reason}]"


def read_items(
    items: Sequence[FileItem],
    digest: Callable[[tuple[str, str] | None], str],
    *,
    decode: bool = False,
    on_read: Callable[[int, int], None] | None = None,
) -> tuple[list[FileItem], list[LeftOut]]:
    """Return the files that can be sent, with their digests and that of the request for their classes; and the bad."""
    read: list[FileItem] = []
    bad: list[LeftOut] = []
    for number, item in enumerate(items):
        try:
            _check_name(item)
            content = payload(item.path)
            if decode and content.suffix != ".npy":
                _check_picture(content)
            read.append(
                replace(item, sha256=content.sha256.hex(), asked=digest(item.classes), payload=content)
            )
        except Exception as error:  # noqa: BLE001 - whatever a reader raises is about its file alone
            bad.append(LeftOut.of(item.path, error))
        if on_read is not None:
            on_read(number + 1, len(items))
    return read, bad


def look(path: Path, label: str) -> tuple[bool, tuple[str, ...]]:
    """Read a file as a run does; return whether it goes to a node as it is, and what a person has to know of it.

    `label` is what the person calls it. Raise DdibError if it cannot be translated.
    """
    if reader := recognition.reader_of(path):
        return False, reader.look(path, label)
    for bad in read_items([FileItem(path.stem, label, path=path)], lambda _: "", decode=True)[1]:
        bad.error.detail = f"{path}: {bad.why}"
        raise bad.error
    return True, ()


def _check_name(item: FileItem) -> None:
    try:
        longest = max(len(Path(name).name.encode()) for name, _ in item.file_names())
    except UnicodeEncodeError as error:
        raise errors.InputError(
            f"{item.path}: its name is no UTF-8", hint="rename it", hop="client"
        ) from error
    if longest > MOST_NAME:
        raise errors.InputError(
            f"{item.path}: its name is too long for its results", hint="rename it", hop="client"
        )


def _check_picture(item: Payload) -> None:
    from ddib_fed.data.pictures import ImageLimits, decode_image

    try:
        decode_image(item.read(), ImageLimits(max_bytes=item.size_bytes + 1))
    except errors.ImageUnreadable:
        raise
    except errors.DdibError:
        pass  # too large for the usual limits: the node has its own


def refused(bad: Sequence[LeftOut], total: int, state: str) -> errors.DdibError:
    """The error that names every bad file; of one file alone its own."""
    first = bad[0].error
    if total == 1:
        return first
    kinds = {type(each.error) for each in bad}
    kind = kinds.pop() if len(kinds) == 1 else errors.InputError
    detail = f"{len(bad):,} of {total:,} files cannot be translated; {state}:\n{listed(bad)}"
    hint = first.hint if len(bad) == 1 else ""
    more = f"without {'it' if len(bad) == 1 else 'them'}: the same command with --skip-bad"
    # What else the errors say of one file does not hold for all.
    return kind(detail, hint=f"{hint}\n{more}".lstrip(), hop=first.hop)


def left_out(found: Sequence[LeftOut], total: int, state: str) -> errors.FilesLeftOut:
    """The error that a command ends with which left out these files; `state` is what became of the others."""
    steps = errors.next_steps(each.error for each in found) or "repair them"
    return errors.FilesLeftOut(
        f"left out: {len(found):,} of {total:,} files; {state}:\n{listed(found)}",
        hint=f"{steps}\nthen, for what is missing: the same command again",
    )


def listed(found: Sequence[LeftOut]) -> str:
    lines = [f"  {each.line()}" for each in found[:MOST_LISTED]]
    more = [f"  and {len(found) - MOST_LISTED:,} more"] if len(found) > MOST_LISTED else []
    return "\n".join([*lines, *more])

"""Tells by names and first bytes what files and folders are, and opens those of the installed formats.

The rule: a file that a reader recognises never leaves as it is. `recognise` finds such files among paths, to be
translated as studies; where that is not done, `ddib_fed.client.files` refuses them. Neither numpy nor a package for any
format is loaded until a file is read.
"""

from __future__ import annotations

import io
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Final, NamedTuple

from ddib_fed.errors import ConfigError, DdibError, UsageError
from ddib_fed.extensions import loaded
from ddib_fed.terminal import explained

if TYPE_CHECKING:
    from ddib_fed.data.study import Options, Origin, Studies, Study, Unread

Bad = list[tuple[Path, DdibError]]  # files that cannot be read, with their errors
HIDDEN: Final = "hidden"
TAKEN: Final = {
    ".npy": ".npy", ".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg", ".tif": ".tif", ".tiff": ".tif",
}  # fmt: skip
"""Suffixes of files that a node takes as they are, and the usual suffix of their kind."""
DICOM_SUFFIX: Final = ".dcm"
NIFTI_SUFFIXES: Final = (".nii", ".nii.gz")
COPY: Final = "copy it again from where it came; its size there and here (ls -l) should be the same"
OPENINGS: Final = {
    ".png": (b"\x89PNG\r\n\x1a\n",), ".jpg": (b"\xff\xd8\xff",), ".npy": (b"\x93NUMPY",),
    ".tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), ".gz": (b"\x1f\x8b",), ".zip": (b"PK\3\4",), ".pdf": (b"%PDF",),
}  # fmt: skip
"""How files begin that often have another's suffix, by their own."""
_BARE_DICOM: Final = (b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0", b"\x08\0\x16\0", b"\2\0\0\0")
"""First tags of a DICOM data set that has no preamble."""
_PREAMBLE: Final = 128


class FoundStudies(NamedTuple):
    """Studies in some files, none of which is read yet; files that cannot be read; and counts of others by kind."""

    studies: Sequence[Unread]
    bad: Bad
    others: Counter[str]


class Reader:
    """A format of which pixels alone leave: how its files are recognised, and read to studies.

    An instance is named by an entry point of the group `ddib_fed.formats`. It is made in every process that looks at
    files, so its module imports what decodes the format only when it reads.

    Attributes
    ----------
    kind : str
        The format in messages, such as "NIfTI volume".
    suffixes : tuple of str
        Of its files, in small letters.
    uses : tuple of str
        Names of the `ddib_fed.studies.Options` that decide its items and output: "intensity", "slices" (of a volume),
        "tile" (of a map), "volume" (whole, on a model's grid). With other values everything is translated again.
    results, beside : tuple of str
        Ends of the output's file names, and of files that may lie beside it, with "{}" for the input's suffix.
    gathers : bool
        Whether several files make a study: all files below a folder are then given to `find` at once, with those
        of its suffixes that it does not recognise, because they are damaged.

    Examples
    --------
    In pyproject.toml ``[project.entry-points."ddib_fed.formats"]`` with ``mine = "mine.format:READER"``, and in
    `mine/format.py` (`tests/extension` has a whole one):

    >>> from ddib_fed import Reader
    >>> class Mine(Reader):
    ...     kind, suffixes, uses = "picture of mine", (".mine",), ("intensity", "tile")
    ...
    ...     def read(self, origin, options):
    ...         from ddib_fed.studies import TiledStudy, Tiles, chosen_rule
    ...
    ...         values = decoded(origin.given)  # (H, W, 1); `decoded` and `MyStudy`, which writes results, are yours
    ...         return MyStudy(origin, Tiles.of(values, chosen_rule(options, values), options.tile))
    >>> READER = Mine()
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ("intensity",)
    results: ClassVar[tuple[str, ...]] = ("{}",)
    beside: ClassVar[tuple[str, ...]] = ()
    gathers: ClassVar[bool] = False

    def recognises(self, name: str, file: BinaryIO) -> bool:
        """Return whether a file is of the format, here by its suffix; raise nothing but OSError.

        The name is in small letters, and empty of bytes in memory; the file is at its beginning, and empty if it cannot
        be opened.
        """
        del file
        return name.endswith(self.suffixes)

    def read(self, origin: Origin, options: Options) -> Study:
        """Read a file to a study. Only a reader that has its own `find` does without.

        Raise ImageUnreadable for a file that cannot be translated (`faults` of `ddib_fed.studies` makes one of what a
        decoder raises), ImageTooLarge where decoding takes more memory than `ImageLimits` allows, by the header.
        """
        raise NotImplementedError  # a bug of the extension: it has neither `read` nor `find`

    def origin(self, path: Path, options: Options, within: str = "") -> Origin:
        """Describe a study before it is read: its results are called as the file, below the folder `within`."""
        from ddib_fed.data.study import Origin, safe_name

        suffix = next((each for each in self.suffixes if path.name.lower().endswith(each)), "") or path.suffix
        name = within + safe_name(path.name[: len(path.name) - len(suffix)])
        outputs, beside = (
            tuple(name + each.format(suffix) for each in ends) for ends in (self.results, self.beside)
        )
        settings = options.settings(*self.uses)
        return Origin(path, name, outputs, (path,), settings, beside=beside, suffix=suffix)

    def find(self, given: Path, files: Sequence[Path], root: Path | None, options: Options) -> FoundStudies:
        """Return the studies in files that were recognised; here one for each file.

        Parameters
        ----------
        given, files
            What the user named, a folder or one of the files; one file, or with `gathers` all of them.
        root
            The folder below which results are called by their paths; None for a file that was named itself.
        """
        from ddib_fed.data.study import Unread

        del given
        unread = []
        for path in files:
            below = "." if root is None else path.parent.relative_to(root).as_posix()
            origin = self.origin(path, options, "" if below == "." else f"{below}/")
            unread.append(Unread(origin, partial(self.read, options=options)))
        return FoundStudies(unread, [], Counter())

    def look(self, path: Path, label: str) -> tuple[str, ...]:
        """Return what a person has to know of a file before it is translated; raise as `read`."""
        from ddib_fed.data.study import Options

        del label
        return open_paths([path], Options()).studies[0].warnings

    @property
    def is_picture(self) -> bool:
        """Whether it reads plain pictures, which are in the model's own numbers and as large as it likes."""
        return "picture_tile" in self.uses


@dataclass(frozen=True)
class LargerPictures(Reader):
    """Pictures that a node takes, and which are sent in tiles; `most` as `Options.most_tiles`."""

    tile: tuple[int, int]
    most: int | None = None
    kind = "picture in tiles"
    uses = ("intensity", "picture_tile", "most_tiles")
    results = (".png",)
    beside = (".mask.png", ".returned.png", ".latent.npy")

    def recognises(self, name: str, file: BinaryIO) -> bool:
        from ddib_fed.data.pictures import ImageLimits, cost_of, image_format
        from ddib_fed.data.tiles import tile_of

        limits = ImageLimits()
        if Path(name).suffix not in TAKEN:
            return False
        try:
            content = file.read(limits.max_bytes + 1)
            limits.check_bytes(len(content))
            if image_format(content) is None:
                return False
            with warnings.catch_warnings(action="ignore"):  # of what is over the limits the node says more
                size = cost_of(content, limits).geometry
        except DdibError:  # whoever reads it says what is wrong
            return False
        return tile_of(size.height, size.width, self.tile, self.most) is not None

    def read(self, origin: Origin, options: Options) -> Study:
        from ddib_fed.data.pictures import ImageLimits, decode_image, read_content
        from ddib_fed.data.tiles import PictureStudy

        with warnings.catch_warnings(action="ignore", category=UserWarning):
            pixels = decode_image(read_content(origin.given, ImageLimits())).pixels
        return PictureStudy.of(origin, pixels, options, "picture")


def readers() -> Collection[Reader]:
    """Return the readers of all formats that can be loaded, third parties' first.

    Raise ConfigError if this package's own are missing or broken: a header might leave.
    """
    by_name, _ = loaded("ddib_fed.formats", Reader)
    if not by_name:
        raise ConfigError("no installed package reads formats", hint="install ddib-fed again")
    return by_name.values()


def broken_readers() -> Sequence[str]:
    """Return a sentence for each reader of another distribution that cannot be loaded."""
    return loaded("ddib_fed.formats", Reader)[1]


@dataclass(frozen=True, slots=True)
class Sighting:
    """A file, or all files of a format below a folder."""

    reader: Reader
    path: Path
    root: Path | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Recognised:
    """What some paths hold; see `Choice` for the fields that both have."""

    studies: tuple[Sighting, ...] = ()
    plain: tuple[Path, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)


class Choice(NamedTuple):
    """What was made of the paths of a command."""

    studies: Studies
    plain: tuple[Path, ...]
    ignored: Counter[str]


def recognise(paths: Sequence[Path], out: Path | None = None, larger: Reader | None = None) -> Recognised:
    """The studies among files and below folders, each file once, and the rest."""
    studies: dict[Path, Sighting] = {}
    gathered: dict[Reader, list[Path]] = {}
    plain: list[Path] = []
    ignored: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            below = _below(path, out, larger)
            plain += below.plain
            ignored += below.ignored
            for each in below.studies:
                studies.setdefault(each.path.absolute(), each)
        elif (reader := reader_of(path, larger)) is None:
            plain.append(path)
        elif reader.gathers:
            gathered.setdefault(reader, []).append(path)
        else:
            studies.setdefault(path.absolute(), Sighting(reader, path, None, (path,)))
    alone = [Sighting(reader, files[0], None, tuple(files)) for reader, files in gathered.items()]
    return Recognised((*studies.values(), *alone), tuple(plain), ignored)


def _below(folder: Path, out: Path | None, larger: Reader | None) -> Recognised:
    """What lies below a folder; a folder without a study is left as it is."""
    below = files_below(folder, out)
    of_files = {path: reader_of(path, larger) for path in below.files}
    known = [(path, reader) for path, reader in of_files.items() if reader is not None]
    studies = [Sighting(reader, path, folder, (path,)) for path, reader in known if not reader.gathers]
    others = [path for path, reader in of_files.items() if reader is None]
    for reader in dict.fromkeys(reader for _, reader in known if reader.gathers):
        # Among such, one that does not begin as they do was cut or never written.
        torn = [path for path in others if path.suffix.lower() in reader.suffixes]
        files = sorted([*torn, *(path for path, each in known if each is reader)])
        others = [path for path in others if path not in torn]
        studies.append(Sighting(reader, folder, folder, tuple(files)))
    if not studies:
        return Recognised(plain=(folder,))
    counts = Counter(map(_suffix, others))
    if counts.keys() & TAKEN.keys():  # those who list the folder's files count the ignored ones
        return Recognised(tuple(studies), (folder,))
    return Recognised(tuple(studies), below.unreadable, counts + below.ignored)


def open_paths(paths: Sequence[Path], options: Options, *, bad: Bad | None = None) -> Choice:
    return open_recognised(recognise(paths), options, bad=bad)


def open_recognised(recognised: Recognised, options: Options, *, bad: Bad | None = None) -> Choice:
    """Open what was recognised, without reading it; errors about a file go to `bad`, or are raised."""
    from ddib_fed.data.study import Studies

    unread: list[Unread] = []
    plain, ignored = [*recognised.plain], Counter(recognised.ignored)
    trained = options.as_trained()  # pictures of any format are in the model's own numbers
    for sighting in recognised.studies:
        reader, path = sighting.reader, sighting.path
        with _collected(path, bad):
            chosen = options if reader.is_picture else trained
            studies = reader.find(path, sighting.files, sighting.root, chosen)
            unread.extend(studies.studies)
            ignored.update(studies.others)
            if not (studies.studies or studies.bad):  # whoever lists the files says what is wrong
                plain.append(path)
            for file, error in studies.bad:
                with _collected(file, bad):
                    raise error
    return Choice(Studies(_named_apart(unread)), tuple(plain), ignored)


@contextmanager
def _collected(path: Path, bad: Bad | None) -> Iterator[None]:
    """Inside, an error about a path goes to `bad`; a wrong option is about no path."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if bad is None:
            raise
        bad.append((path, explained(error, path).kept()))


def _named_apart(unread: Sequence[Unread]) -> list[Unread]:
    """Add the suffix to names of results that would be alike; raise UsageError if some still are."""
    times = Counter(each.origin.name.casefold() for each in unread)
    named: list[Unread] = []
    taken: dict[str, Path] = {}
    for each in unread:
        origin = each.origin
        if times[origin.name.casefold()] > 1:
            origin = origin.renamed(origin.name + origin.suffix.replace(".", "-"))
        named.append(replace(each, origin=origin))
        first = taken.setdefault(origin.name, origin.given)
        if first is not origin.given:
            raise UsageError(
                f"the results of {first} and {origin.given} would both be called {origin.name}",
                hop="client",
                hint="give their common parent folder, or rename one of them",
            )
    return named


@dataclass(frozen=True, slots=True)
class Below:
    files: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    ignored: Counter[str]


def files_below(root: Path, out: Path | None) -> Below:
    """The files below a folder; neither hidden folders nor `out` nor links to folders are looked into."""
    without = None if out is None else out.resolve()
    files: list[Path] = []
    unreadable: list[Path] = []
    ignored: Counter[str] = Counter()
    for at, folders, names in os.walk(root, onerror=lambda error: unreadable.append(Path(error.filename))):
        here = Path(at)
        ignored[HIDDEN] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [d for d in folders if not d.startswith(".") and (here / d).resolve() != without]
        for path in (here / name for name in names if not name.startswith(".")):
            if path.exists() and not path.is_file():
                ignored[_suffix(path)] += 1
            else:
                files.append(path)
    return Below(tuple(sorted(files)), tuple(sorted(unreadable)), +ignored)


def _suffix(path: Path) -> str:
    return path.suffix.lower() or "without suffix"


def reader_of(path: Path, larger: Reader | None = None) -> Reader | None:
    """Return the reader of a file; None for a file that a node may take as it is, or that nobody reads."""
    try:
        with path.open("rb") as file:
            return _reader(path.name.lower(), file, larger)
    except OSError:
        return _reader(path.name.lower(), io.BytesIO(), larger)


def reader_of_content(content: bytes) -> Reader | None:
    """Return the reader of a file's content that begins like a file that a node takes; None for any other."""
    return _reader("", io.BytesIO(content), None)


def _reader(name: str, file: BinaryIO, larger: Reader | None) -> Reader | None:
    candidates: list[Reader] = [*readers(), *((larger,) if larger else ())]
    for reader in candidates:
        file.seek(0)
        if reader.recognises(name, file):
            return reader
    return None


def beginning(content: bytes, path: Path) -> tuple[str, str]:
    """Say what a file is by its first bytes (352 are enough), and which command helps."""
    kind = next((suffix for suffix, openings in OPENINGS.items() if content.startswith(openings)), "")
    if content[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        kind = DICOM_SUFFIX
    elif content[344:348] == b"n+1\0" or content[4:8] == b"n+2\0":
        kind = ".nii"
    given, bare = shlex.quote(str(path)), path.with_suffix("") if path.suffix == ".gz" else path
    if kind in {".gz", ".zip"} and not path.name.lower().endswith(NIFTI_SUFFIXES):
        folder = shlex.quote(str(path.with_suffix("")))
        return f"is a {kind} file", f"gzip -dk {given}" if kind == ".gz" else f"unzip {given} -d {folder}"
    if kind:
        right = f"{bare}.gz" if kind == ".gz" else str(bare.with_suffix(kind))
        return f"is a {kind} file", COPY if right == str(path) else f"mv -n {given} {shlex.quote(right)}"
    if content.startswith(_BARE_DICOM):
        whole = shlex.quote(str(path.with_name(f"{path.stem}-whole{DICOM_SUFFIX}")))
        how = f"dcmconv {given} {whole}   (dcmtk writes it)"
        return "is DICOM without the beginning that files have", how
    if content.lstrip()[:1] == b"<":
        how = "open it in a browser: a page to log in is often saved"
        return "is a web page or other text with tags", how
    return ("begins as no known format does" if content else "is empty"), COPY


def beginning_of(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        return beginning(file.read(352), path)

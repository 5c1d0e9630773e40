"""Opens what a command was given: studies of the field's formats, and plain files that a node takes itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from ddib_fed.errors import UsageError
from ddib_fed.formats.dicom_writing import find_dicom
from ddib_fed.formats.nifti import nifti_origin, read_nifti
from ddib_fed.formats.study import Bad, Choice, Options, Origin, Studies, Study, Unread
from ddib_fed.formats.tiles import geotiff_origin, picture_origin, read_geotiff, read_picture
from ddib_fed.recognition import Format, Recognised, recognise
from ddib_fed.terminal import explained

_FORMATS: Final[dict[Format, tuple[Callable[[Path, Options, str], Origin], Callable[..., Study]]]] = {
    Format.NIFTI: (nifti_origin, read_nifti),
    Format.PICTURE: (picture_origin, read_picture),
    Format.LARGER: (picture_origin, read_picture),
    Format.MAP: (geotiff_origin, read_geotiff),
}


def open_paths(
    paths: Sequence[Path], options: Options, *, out: Path | None = None, bad: Bad | None = None
) -> Choice:
    return open_recognised(recognise(paths, out), options, bad=bad)


def open_recognised(found: Recognised, options: Options, *, bad: Bad | None = None) -> Choice:
    """Open what was recognised, as `open_paths` does."""
    unread: list[Unread] = []
    slices: list[Path] = []
    ignored = Counter(found.ignored)
    trained = options.as_trained()  # pictures of any format are in the model's own numbers

    def take_series(given: Path, files: Sequence[Path], root: Path | None) -> None:
        series, unreadable, others = find_dicom(given, files, root, trained)
        unread.extend(series)
        ignored.update(others)
        for path, error in unreadable:
            with _collected(path, bad):
                raise error

    for sighting in found.studies:
        path = sighting.path
        with _collected(path, bad):
            if sighting.format is not Format.DICOM:
                origin_of, read = _FORMATS[sighting.format]
                chosen = options if sighting.is_picture else trained
                reader = partial(read, options=chosen)
                unread.append(Unread(origin_of(path, chosen, sighting.within), reader))
            elif sighting.files:
                take_series(path, sighting.files, path)
            else:
                slices.append(path)
    if slices:
        with _collected(slices[0], bad):
            take_series(slices[0], slices, None)
    return Choice(Studies(_named_apart(unread)), found.plain, ignored)


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
    named, taken = list[Unread](), dict[str, Path]()
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

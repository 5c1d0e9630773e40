"""Opens what a command was given: studies of the field's formats, and plain files that a node takes itself."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ddib_fed.errors import DdibError, ImageUnreadable, UsageError
from ddib_fed.formats.dicom import is_directory_file
from ddib_fed.formats.dicom_writing import FoundSeries, find_dicom
from ddib_fed.formats.geotiff import geotiff_origin, read_geotiff
from ddib_fed.formats.nifti import nifti_origin, read_nifti
from ddib_fed.formats.pictures import picture_origin, read_picture
from ddib_fed.formats.recognition import Format, Recognised, Sighting, recognise
from ddib_fed.formats.study import Bad, Choice, Options, Origin, Studies, Study, Unread

_FORMATS: Final[
    dict[Format, tuple[Callable[[Path, Options, str], Origin], Callable[[Origin, Options], Study]]]
] = {
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
    """The same of what was recognised; arguments and errors as of `open_paths`."""
    unread: list[Unread] = []
    slices: list[Path] = []
    ignored = Counter(found.ignored)
    trained = options.as_trained()  # pictures of any format are in the model's own numbers

    def take(series: FoundSeries) -> None:
        unread.extend(series.unread)
        ignored.update(series.others)
        _set_aside(series.unreadable, bad)

    for sighting in found.studies:
        with _collected(sighting.path, bad):
            if sighting.format is not Format.DICOM:
                unread.append(_of_file(sighting, options if sighting.is_picture else trained))
            elif sighting.files:
                take(find_dicom(sighting.path, sighting.files, sighting.path, trained))
            elif is_directory_file(sighting.path):
                raise ImageUnreadable(
                    f"{sighting.path} is a DICOMDIR, a list of files, and not read",
                    hop="client",
                    hint=f"name its folder: {shlex.quote(str(sighting.path.parent))}",
                )
            else:
                slices.append(sighting.path)
    if slices:
        with _collected(slices[0], bad):
            take(find_dicom(slices[0], slices, None, trained))
    named = _named_apart(unread)
    return Choice(Studies(named), found.plain, ignored)


def _of_file(sighting: Sighting, options: Options) -> Unread:
    origin_of, read = _FORMATS[sighting.format]
    return Unread(origin_of(sighting.path, options, sighting.within), lambda origin: read(origin, options))


@contextmanager
def _collected(path: Path, bad: Bad | None) -> Iterator[None]:
    """Inside, an error about a path goes to `bad`; a wrong option is about no path."""
    try:
        yield
    except UsageError:
        raise
    except DdibError as error:
        if bad is None:
            raise
        bad.append((path, error.kept()))


def _set_aside(found: Sequence[tuple[Path, DdibError]], bad: Bad | None) -> None:
    for path, error in found:
        with _collected(path, bad):
            raise error


def _named_apart(unread: Sequence[Unread]) -> list[Unread]:
    """The same with different names for all results: of files that differ in their suffix alone with the suffix."""

    times = Counter(each.origin.name.casefold() for each in unread)
    named = []
    for each in unread:
        alone = times[each.origin.name.casefold()] == 1
        named.append(each if alone else each.renamed(each.origin.name + each.origin.suffix.replace(".", "-")))
    taken: dict[str, Path] = {}
    for origin in (each.origin for each in named):
        first = taken.setdefault(origin.name, origin.given)
        if first is not origin.given:
            raise UsageError(
                f"the results of {first} and {origin.given} would both be called {origin.name}",
                hop="client",
                hint="give their common parent folder, or rename one of them",
            )
    return named

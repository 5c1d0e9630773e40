"""Recognises what a command was given: studies of the field's formats, and plain files that a node takes itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddib_fed.errors import UsageError
from ddib_fed.formats.dicom.study import files_of, read_dicom
from ddib_fed.formats.geotiff import read_geotiff
from ddib_fed.formats.nifti import read_nifti
from ddib_fed.formats.pictures import read_picture
from ddib_fed.formats.recognition import is_dicom, is_georeferenced, is_nifti, is_picture
from ddib_fed.formats.study import Choice, Options, Study


def open_paths(paths: Sequence[Path], options: Options) -> Choice:
    """The studies among some paths, and the files that are left for the node to read.

    A folder is a study if DICOM files are below it; several DICOM files are sorted into series.

    Args:
        paths: As given.
        options: How to read.

    Raises:
        ExtraMissing: A package for a format is not installed.
        ImageUnreadable, FileMissing, InputError, ImageTooLarge: A file cannot be read.
        UsageError: There is no such rule of intensity, or two studies would have results of one name.
    """
    studies: list[Study] = []
    plain: list[Path] = []
    slices: list[Path] = []
    for path in paths:
        if is_nifti(path):
            studies.append(read_nifti(path, options))
        elif is_picture(path):
            studies.append(read_picture(path, options))
        elif is_georeferenced(path):
            studies.append(read_geotiff(path, options))
        elif found := files_of(path):
            named = path.parent if path.is_file() else path
            studies += read_dicom(path, found, named.resolve().name, options)
        elif path.is_file() and is_dicom(path):
            slices.append(path)
        else:
            plain.append(path)
    if slices:
        stem = slices[0].stem if len(slices) == 1 else slices[0].resolve().parent.name
        studies += read_dicom(slices[0], slices, stem, options)
    _require_names(studies)
    return Choice(tuple(studies), tuple(plain))


def _require_names(studies: Sequence[Study]) -> None:
    taken: dict[str, Path] = {}
    for study in studies:
        first = taken.setdefault(study.name, study.given)
        if first is not study.given:
            raise UsageError(
                f"the results of {first} and {study.given} would both be called {study.name}",
                hop="client",
                hint="rename one of them, or translate them one by one",
            )

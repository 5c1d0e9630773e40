"""Readers of the field's formats. A few bytes say which reader takes a file; decoders load when one is read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from ddib_fed import Reader
from ddib_fed.errors import ImageUnreadable

if TYPE_CHECKING:
    from ddib_fed.studies import FoundStudies, Options, Origin, Study

# Tags of the GeoTIFF standard (OGC 19-008): pixel scale, tie points, transformation, key directory and its values; of
# rational polynomials (RPC) and of Intergraph's matrix, which GDAL reads as places on the earth too.
GEOTAGS: Final = frozenset({33550, 33922, 34264, 34735, 34736, 34737, 50844, 33920})
_ITK: Final = {".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd", ".nhdr": ".nrrd"}
"""Suffixes of MetaImage and NRRD, and of their results."""
_PREAMBLE: Final = 128
_MOST_TAGS: Final = 1 << 16
_MOST_PAGES: Final = 10_000


def is_dicom(file: BinaryIO) -> bool:
    """Return whether a file begins as DICOM files do (PS3.10 7.1)."""
    return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


class Dicom(Reader):
    """Series below a folder, each contrast by itself; a derived series out."""

    kind = "DICOM file"
    uses = ("intensity", "volume")
    suffixes = (".dcm",)
    gathers = True

    def recognises(self, name: str, file: BinaryIO) -> bool:
        del name
        return is_dicom(file)

    def find(self, given: Path, files: Sequence[Path], root: Path | None, options: Options) -> FoundStudies:
        from ddib_fed.formats.dicom_writing import find_dicom

        return find_dicom(given, files, root, options)

    def look(self, path: Path, label: str) -> tuple[str, ...]:
        """Return the warnings of the folder that the label names: one slice is no whole series."""
        from ddib_fed.formats.dicom import read_series, sort_files

        sorted_files = sort_files([path])
        for _, error in sorted_files.unreadable:
            raise error
        sorted_files.require_pictures(path)
        (slices,) = sorted_files.series.values()
        return read_series(label.partition("/")[0], slices)[0].warnings


class GeoTiff(Reader):
    """A map in tiles."""

    kind = "TIFF with a georeference"
    suffixes = (".tif", ".tiff")
    uses = ("intensity", "tile")

    def recognises(self, name: str, file: BinaryIO) -> bool:
        return (not name or name.endswith(self.suffixes)) and bool(GEOTAGS & _tags(file))

    def read(self, origin: Origin, options: Options) -> Study:
        from ddib_fed.formats.geotiff import read_geotiff

        return read_geotiff(origin, options)


class Nifti(Reader):
    """A volume in slices, or whole."""

    kind = "NIfTI volume"
    suffixes = (".nii.gz", ".nii")
    uses = ("intensity", "slices", "volume")
    beside = (".mask{}",)

    def read(self, origin: Origin, options: Options) -> Study:
        from ddib_fed.formats.nifti import read_nifti

        return read_nifti(origin, options)


class Itk(Reader):
    """MetaImage and NRRD: a volume in slices, or whole. The result is one file, also where the input is two."""

    kind = "MetaImage or NRRD volume"
    suffixes = tuple(_ITK)
    uses = ("intensity", "slices", "volume")
    beside = (".mask{}",)

    def origin(self, path: Path, options: Options, within: str = "") -> Origin:
        from ddib_fed.formats.itk import read_header

        origin = super().origin(path, options, within)
        whole = _ITK[origin.suffix]
        outputs, beside = (
            tuple(name.removesuffix(origin.suffix) + whole for name in names)
            for names in (origin.outputs, origin.beside)
        )
        origin = replace(origin, outputs=outputs, beside=beside)
        with suppress(Exception):  # what is wrong with it, `read` says
            return replace(origin, inputs=tuple({path, read_header(path).data}))
        return origin

    def read(self, origin: Origin, options: Options) -> Study:
        from ddib_fed.formats.itk import read_itk

        return read_itk(origin, options)


class Pictures(Reader):
    """JPEG 2000, WebP and BMP, each a PNG out."""

    kind = "picture of a format that nodes do not take"
    suffixes = (".jp2", ".j2k", ".webp", ".bmp")
    uses = ("intensity", "picture_tile", "most_tiles")
    results = (".png",)
    beside = (".mask.png", ".returned.png", ".latent.npy")

    def read(self, origin: Origin, options: Options) -> Study:
        from ddib_fed import studies

        content = studies.read_content(origin.given, studies.ImageLimits())
        kind, called = {".webp": ("WEBP", "WebP"), ".bmp": ("BMP", "BMP")}.get(
            origin.suffix, ("JPEG2000", "JPEG 2000")
        )
        at = content.find(b"\xff\x4f\xff\x51")  # the header of a JPEG 2000 codestream (ITU-T T.800 A.5.1)
        if kind == "JPEG2000" and at >= 0 and len(content) > at + 42:
            channels, bits = int.from_bytes(content[at + 40 : at + 42]), (content[at + 42] & 0x7F) + 1
            if bits > (16 if channels == 1 else 8):
                raise ImageUnreadable(
                    f"it has {bits} bits in {channels} channels, which cannot be read exactly here",
                    hint="convert it to a 16-bit PNG or TIFF first",
                )
        return studies.PictureStudy.of(origin, studies.decode_pillow(content, kind), options, called)


DICOM, GEOTIFF, ITK, NIFTI, PICTURES = Dicom(), GeoTiff(), Itk(), Nifti(), Pictures()


def _tags(file: BinaryIO) -> set[int]:
    """Return the tags of a TIFF's pages, as far as they can be read; empty for any other file."""
    opening = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(opening[:2])
    version = struct.unpack_from(f"{order}H", opening, 2)[0] if order and len(opening) == 16 else 0
    if version not in {42, 43}:
        return set()
    # A page is the number of its tags, the tags, and where the next page is; 43 is BigTIFF.
    of_version = {42: ("H", 12, "I", 4), 43: ("Q", 20, "Q", 8)}
    head, entry, place, first = of_version[version]
    head, place = f"{order}{head}", f"{order}{place}"
    (at,) = struct.unpack_from(place, opening, first)
    tags: set[int] = set()
    seen: set[int] = set()
    try:
        while at and at not in seen and len(seen) < _MOST_PAGES:
            seen.add(at)
            file.seek(min(at, 2**62))
            (count,) = struct.unpack(head, file.read(struct.calcsize(head)))
            table = file.read(min(count, _MOST_TAGS) * entry)
            tags |= {
                struct.unpack_from(f"{order}H", table, tag)[0] for tag in range(0, len(table) - 1, entry)
            }
            (at,) = struct.unpack(place, file.read(struct.calcsize(place)))
    except struct.error:  # it ends in the middle of a page
        pass
    return tags

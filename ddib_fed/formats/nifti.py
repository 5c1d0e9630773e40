"""NIfTI: a volume, a slice or a time series, and one of the same affine, orientation and spacing out.

Of the input's header only its place in space (both forms, with their codes), the spacing and the units go into the
output; nothing leaves.
"""

from __future__ import annotations

import gzip
import io
import math
import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed import __version__, studies
from ddib_fed.errors import ImageUnreadable

_LONGEST_HEADER: Final = 540
_NO_PLACE: Final = "set its qform or sform to where it lies (fslorient, or set_sform of nibabel)"
_PLACE: Final = (
    "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "sform_code", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_MM: Final = {"meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True, slots=True)
class NiftiStudy(studies.VolumeStudy):
    """A volume, or several of one time series."""

    image: Any

    kind = "NIfTI volume"

    def encoded(self, volume: studies.Pixels, translated: studies.StudyResults) -> bytes:
        from nibabel.spatialimages import HeaderDataError

        made = type(self.image)(np.ascontiguousarray(volume), None)
        header, given = made.header, self.image.header
        zooms = given.get_zooms()
        header.set_zooms((*zooms, *([1.0] * (volume.ndim - len(zooms))))[: volume.ndim])
        header.set_xyzt_units(*given.get_xyzt_units())
        for name in _PLACE:
            header[name] = given[name]
        header["pixdim"][0] = given["pixdim"][0]
        try:
            given.get_qform()
        except (ValueError, HeaderDataError):
            header["qform_code"] = 0  # it is no rotation, so the other form says where the volume lies
        if volume.ndim == 5:
            header.set_intent("vector")
        header["descrip"] = f"SYNTHETIC {translated.target} ddib-fed {__version__}"[:79]
        content: bytes = made.to_bytes()
        return gzip.compress(content, mtime=0) if self.origin.outputs[0].endswith(".gz") else content


def read_nifti(origin: studies.Origin, options: studies.Options) -> NiftiStudy:
    path = origin.given
    image = _opened(path)
    unit_mm = _MM.get(image.header.get_xyzt_units()[0], 1.0)
    geometry = studies.VolumeGeometry(image.shape, image.affine, unit_mm, _NO_PLACE)
    plane = geometry.plane(options)
    values = geometry.planes(_values(path, image), plane)
    return NiftiStudy(origin, geometry.pixels(values, options), geometry, plane, image)


def read_values(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return a file's values in its own axes, and its affine in mm."""
    image = _opened(path)
    scale = np.diag([*[_MM.get(image.header.get_xyzt_units()[0], 1.0)] * 3, 1.0])
    return _values(path, image), scale @ image.affine


def _values(path: Path, image: Any) -> NDArray[Any]:
    """Return the values of slices, volumes or a time series, if there is memory for them."""
    proxy, kind = image.dataobj, image.get_data_dtype()
    if len(image.shape) not in {2, 3, 4} or 0 in image.shape or kind.fields or kind.kind == "c":
        raise ImageUnreadable(
            f"it holds {'colours' if kind.fields else kind} of {len(image.shape)} axes; slices, volumes and time "
            "series of real numbers are translated",
            hint="write its parts (channels, real and imaginary, times) as volumes, e.g. by nibabel; or leave it out",
        )
    stored = (proxy.slope, proxy.inter) == (1.0, 0.0)
    wide = (kind if stored else np.result_type(kind, np.float32)).newbyteorder("=")
    need = studies.memory_of_values(math.prod(image.shape), wide.itemsize)
    studies.ImageLimits().check_memory(need, f"cut it into parts, e.g. by fslsplit {shlex.quote(str(path))}")
    with _faults(path):
        # Before nibabel makes room for them; deflated bytes become at most 1,032 times as many.
        most = path.stat().st_size * (1 if path.suffix == ".nii" else 1_032)
        if (stated := math.prod(image.shape) * kind.itemsize) > most:
            raise ValueError(f"its header says {stated} bytes of values, the file holds fewer")
        raw: NDArray[Any] = proxy.get_unscaled()
    if stored:
        return raw.astype(wide, copy=False)
    values = np.empty(raw.shape, wide, order="F")
    for part in studies.parts_of(raw.T):
        values.T[part] = raw.T[part] * proxy.slope + proxy.inter
    return values


def _faults(path: Path) -> AbstractContextManager[None]:
    what, how = studies.beginning_of(path)
    return studies.faults(f"{path}: it cannot be read: it {what}", how, "client")


def _opened(path: Path) -> Any:
    """Return the image whose header a file begins with, without its extensions, which can unpack to any size."""
    from nibabel import Nifti1Image, Nifti2Image, openers

    with _faults(path), openers.ImageOpener(path) as file:
        opening = file.read(_LONGEST_HEADER)
        kind = Nifti2Image if opening[4:7] == b"n+2" else Nifti1Image
        if not kind.header_class.may_contain_header(opening):
            raise ValueError("its header is none of NIfTI")
        header = kind.header_class.from_fileobj(io.BytesIO(opening[: kind.header_class.sizeof_hdr]))
        header.get_xyzt_units()  # raises where the codes of units are none of the standard
        return kind(kind.ImageArrayProxy(path, header.copy()), header.get_best_affine(), header)

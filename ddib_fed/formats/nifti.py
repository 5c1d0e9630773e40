"""NIfTI: a volume in slices of canonical orientation, and a volume of the same affine, orientation and spacing out.

Of the input's header only the affine, its codes, the spacing and the units go into the output; nothing leaves.
"""

from __future__ import annotations

import gzip
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import FileMissing, ImageUnreadable
from ddib_fed.extras import extra
from ddib_fed.formats.intensity import chosen_rule
from ddib_fed.formats.origin import Origin
from ddib_fed.formats.slices import Slices
from ddib_fed.formats.study import Assembled, FromOrigin, Options, Translated
from ddib_fed.samples.formats.decoded import Pixels
from ddib_fed.version import __version__

MAX_VALUES: Final = 1 << 29
"""Values of a volume at most, which then takes 2 GiB as float32."""
# In canonical orientation (right, anterior, superior): the axis that slices follow, and those across and up a slice.
PLANES: Final = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}


@dataclass(frozen=True, slots=True)
class NiftiStudy(FromOrigin):
    """A volume, or several of one time series.

    Attributes:
        image: Of nibabel, for its geometry.
        plane: In which it is cut.
        slices: Volume after volume.
    """

    image: Any
    plane: str
    slices: Slices

    @property
    def kind(self) -> str:
        """The format."""
        return "NIfTI volume"

    @property
    def warnings(self) -> tuple[str, ...]:
        """A head may be recognised by its surface."""
        return ()

    @property
    def sent(self) -> tuple[int, ...]:
        """Slices that are sent."""
        return self.slices.sent

    @property
    def planes(self) -> int:
        """All slices."""
        return len(self.slices.numbers)

    def items(self) -> Iterator[bytes]:
        """Each slice as a file of pixels."""
        return self.slices.items()

    def assemble(self, translated: Translated) -> Assembled:
        """The volume of the results, as the input lies in its file.

        Raises:
            InputError: A result has another size than what was sent.
        """
        stack = self.slices.stack(translated)
        report, said = self.slices.report(translated, stack)
        files = {self.outputs[0]: self._file(self._volume(stack, translated), translated)}
        if self.slices.missing(translated):
            there = np.zeros_like(stack[..., :1], dtype=np.uint8)
            there[
                [at for at, plane in zip(self.sent, translated.planes, strict=True) if plane is not None]
            ] = 1
            mask = replace(translated, slope=1.0, intercept=0.0, planes=(there[0],))
            (name,) = self.origin.beside
            files[name] = self._file(self._volume(there, mask), mask)
            said = (*said, f"slices that were not translated are 0 in {name}")
        report["geometry"] = {
            "plane": self.plane,
            "shape": [int(side) for side in self.image.shape],
            "affine": self.image.affine.tolist(),
            "orientation": "".join(_nibabel().aff2axcodes(self.image.affine)),
            "slices_in": "RAS: rows downwards, columns to the right of the head, or to the front of sagittal slices",
        }
        return Assembled(files, report, said)

    def _volume(self, stack: Pixels, translated: Translated) -> Pixels:
        """Slices (N, H, W, C) as the volume that they make, as it lies in the file."""
        shape = (*self.image.shape, *([1] * (4 - len(self.image.shape))))
        canonical = _from_slices(stack, self.plane, shape[3], _canonical_shape(self.image))
        volume = translated.scaled(_turned_back(canonical, self.image))
        if len(self.image.shape) == 3:
            volume = volume[:, :, :, 0]
        # Colours are one more axis, as the 5th of NIfTI for vectors.
        return volume[..., 0] if translated.channels == 1 else volume.reshape(*volume.shape[:3], -1, 3)

    def _file(self, volume: Pixels, translated: Translated) -> bytes:
        """The volume with a header of its own."""
        nibabel = _nibabel()
        kind = type(self.image)
        made = kind(np.ascontiguousarray(volume), self.image.affine)
        header, given = made.header, self.image.header
        zooms = given.get_zooms()
        header.set_zooms((*zooms, *([1.0] * (volume.ndim - len(zooms))))[: volume.ndim])
        header.set_xyzt_units(*given.get_xyzt_units())
        # The affine is the one that nibabel reads; both forms get it, with the codes that say what it is.
        made.set_qform(self.image.affine, code=int(given["qform_code"]) or None, strip_shears=True)
        made.set_sform(self.image.affine, code=int(given["sform_code"]) or 2)
        if volume.ndim == 5:
            header.set_intent("vector")
        header["descrip"] = f"SYNTHETIC {translated.target} ddib-fed {__version__}"[:79]
        content = nibabel.Nifti1Image.to_bytes(made) if kind is nibabel.Nifti1Image else made.to_bytes()
        return gzip.compress(content, mtime=0) if self.outputs[0].endswith(".gz") else content


def nifti_origin(path: Path, options: Options, within: str = "") -> Origin:
    """What the study of a volume is made from; arguments as of `read_nifti`."""
    suffix = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    settings = options.settings("intensity", "slices")
    return Origin.of_file(path, settings, suffix=suffix, within=within, beside=[f".mask{suffix}"])


def read_nifti(path: Path, options: Options, within: str = "") -> NiftiStudy:
    """The volume in a file.

    Args:
        path: The file.
        options: Rule of intensity, and the plane in which it is cut.
        within: In front of the name of the results, as in `Origin.of_file`.

    Raises:
        FileMissing: There is none.
        ExtraMissing: nibabel is not installed.
        ImageUnreadable: It is damaged, too large, of complex numbers, or of colours or more than four axes.
        UsageError: There is no such rule of intensity.
    """
    if not path.exists():
        raise FileMissing(f"there is no {path}", hop="client")
    image = _opened(path)
    if len(image.shape) not in {3, 4} or image.get_data_dtype().fields or image.get_data_dtype().kind == "c":
        raise ImageUnreadable(
            f"{path} holds {image.get_data_dtype()} of {len(image.shape)} axes; a volume has 3 or 4, of real numbers",
            hop="client",
        )
    if int(np.prod(image.shape)) > MAX_VALUES:
        raise ImageUnreadable(
            f"{path} has {int(np.prod(image.shape))} values, {MAX_VALUES} are the limit", hop="client"
        )
    try:
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel raises any exception on damaged files
        raise ImageUnreadable(
            f"{path} cannot be read: {_one_line(error)}",
            hop="client",
            hint=f"gzip -t {shlex.quote(str(path))}",
        ) from error
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    try:
        canonical = _canonical(values.reshape(*values.shape, *([1] * (4 - values.ndim))), image)
        slices = Slices.of(_to_slices(canonical, options.slices), chosen_rule(options.intensity, values))
    except ImageUnreadable as error:
        raise ImageUnreadable(f"{path}: {error.detail}", hop="client", hint=error.hint) from error
    return NiftiStudy(nifti_origin(path, options, within), image, options.slices, slices)


def _one_line(error: Exception) -> str:
    """What nibabel says, which may be several lines."""
    return " ".join(str(error).split())[:300]


def _nibabel() -> Any:
    with extra("nifti", "nibabel", "reading NIfTI needs nibabel, which is not installed"):
        import nibabel
    return nibabel


def _opened(path: Path) -> Any:
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ImageUnreadable(
            f"{path} cannot be read as NIfTI: {_one_line(error)}", hop="client", hint="is it complete?"
        ) from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise ImageUnreadable(f"{path} is {type(image).__name__}, no NIfTI", hop="client")
    return image


def _orientation(image: Any) -> NDArray[Any]:
    """(3, 2): for each axis in the file its canonical axis, and 1 or -1 for its direction.

    Raises:
        ImageUnreadable: The affine says nothing.
    """
    found: NDArray[Any] = _nibabel().io_orientation(image.affine)
    if np.isnan(found).any():
        raise ImageUnreadable("its affine has no orientation: an axis is all zero", hop="client")
    return found


def _canonical(values: NDArray[Any], image: Any) -> NDArray[Any]:
    """Values (X, Y, Z, T) as they lie in the file, turned to right, anterior, superior."""
    turned: NDArray[Any] = _nibabel().apply_orientation(values, _orientation(image))
    return turned


def _canonical_shape(image: Any) -> tuple[int, ...]:
    shape = [0, 0, 0]
    for axis, (to, _) in enumerate(_orientation(image)):
        shape[int(to)] = int(image.shape[axis])
    return tuple(shape)


def _turned_back(canonical: Pixels, image: Any) -> Pixels:
    """A canonical volume (X, Y, Z, T, C) as it lies in the file."""
    orientations = _nibabel().orientations
    there = _orientation(image)
    back = orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), there)
    turned: Pixels = orientations.apply_orientation(canonical, back)
    return turned


def _to_slices(canonical: NDArray[Any], plane: str) -> NDArray[Any]:
    """(T * N, H, W, 1) of a canonical volume (X, Y, Z, T): rows downwards, columns to the right."""
    through, across, up = PLANES[plane]
    ordered = canonical.transpose(3, through, up, across)[:, :, ::-1]
    return ordered.reshape(-1, *ordered.shape[2:], 1)


def _from_slices(stack: Pixels, plane: str, times: int, shape: tuple[int, ...]) -> Pixels:
    """The canonical volume (X, Y, Z, T, C) of slices (T * N, H, W, C)."""
    through, across, up = PLANES[plane]
    ordered = stack.reshape(times, shape[through], *stack.shape[1:])[:, :, ::-1]
    axes = {through: 1, up: 2, across: 3}
    return ordered.transpose(axes[0], axes[1], axes[2], 0, 4)

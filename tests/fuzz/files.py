"""Files that clients and peers send, pictures and points; and those of the field, of a PACS or a folder."""

import gzip
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import nibabel
import nrrd
import numpy as np
from PIL import Image

from ddib_fed.data.pictures import decode_image, decode_volume
from ddib_fed.data.points import parse_npy, to_npy
from ddib_fed.data.study import Grid, Options
from ddib_fed.recognition import open_paths
from tests.data_modules import picture_examples as pictures
from tests.formats.dicom.files import write_enhanced, write_series
from tests.formats.echoes import DICOM
from tests.formats.maps import write_map
from tests.formats.test_itk import metaimage
from tests.fuzz.target import LIMITS, MOST, Target, as_file


def picture(data: bytes) -> None:
    """PNG, JPEG, TIFF or .npy of a client."""
    decode_image(data, LIMITS)


def _png() -> list[bytes]:
    grey, colour, deep = (
        pictures.noise(8, 9, 1), pictures.noise(7, 5, 3), pictures.noise(6, 6, 1, "uint16"),
    )  # fmt: skip
    interlaced = io.BytesIO()
    Image.fromarray(colour).save(interlaced, "PNG", optimize=True)
    return [pictures.png_of(each) for each in (grey, colour, deep)] + [interlaced.getvalue()]


def _jpeg() -> list[bytes]:
    return [pictures.saved(pictures.noise(16, 17, channels), "JPEG") for channels in (1, 3)]


def _tiff() -> list[bytes]:
    made = [pictures.tiff_of(pictures.noise(8, 9, 3)), pictures.tiff_of(pictures.noise(8, 9, 1, "uint16"))]
    file = io.BytesIO()
    Image.fromarray(pictures.noise(8, 8, 3)).save(file, "TIFF", compression="tiff_lzw")
    return [*made, file.getvalue()]


def _npy() -> list[bytes]:
    return [pictures.npy_of(pictures.noise(8, 9, 3)), pictures.npy_of(np.zeros((4, 4), np.float32))]


def points(data: bytes) -> None:
    """Points of a client, or of a peer's answer."""
    parse_npy(data, max_bytes=MOST, max_points=10_000, dim=2)


def study(name: str, volume: Grid | None = None) -> Callable[[bytes], None]:
    """Make a parser of files of this suffix: slices or whole volumes, and their items."""

    def read(data: bytes) -> None:
        """A file of the field, to its items."""
        with as_file(data, name) as path, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for each in open_paths([path], Options(volume=volume)).studies:
                for _ in each.items():
                    pass

    return read


def _nifti() -> list[bytes]:
    values = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    scaled = nibabel.Nifti1Image(values, np.diag([2, 2, 3, 1]))
    scaled.header.set_slope_inter(0.5, -3)
    return [kind(values, np.eye(4)).to_bytes() for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image)] + [
        scaled.to_bytes()
    ]


def _metaimage() -> list[bytes]:
    raw = np.arange(6 * 7 * 8, dtype="<i2").tobytes()
    return [metaimage(raw, shape=(6, 7, 8)), metaimage(raw, shape=(6, 7, 8), deflated=True)]


def _nrrd() -> list[bytes]:
    space = {"space": "LPS", "space directions": np.eye(3), "space origin": (0, 0, 0)}
    made = []
    for encoding in ("raw", "gzip"):
        nrrd.write(
            file := io.BytesIO(),
            np.arange(120, dtype=np.int16).reshape(4, 5, 6),
            {**space, "encoding": encoding},
        )
        made.append(file.getvalue())
    return made


def _geotiff() -> list[bytes]:
    made = []
    with tempfile.TemporaryDirectory() as at, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, options in enumerate([{}, {"nodata": 3}, {"compress": "deflate"}]):
            values = np.arange(18 * 20, dtype=np.int16).reshape(1, 18, 20)
            made.append(write_map(Path(at) / f"{number}.tif", values, **options).read_bytes())
    return made


def _dicom() -> list[bytes]:
    """Plain, enhanced, run lengths, JPEG 2000, deflated, JPEG-LS, JPEG lossless."""
    with tempfile.TemporaryDirectory() as at:
        values = np.arange(3 * 8 * 9).reshape(3, 8, 9)
        plain = [
            write_series(Path(at) / "plain", values)[0],
            write_enhanced(Path(at) / "enhanced.dcm", values),
        ]
        made = [path.read_bytes() for path in plain]
    names = ("MR_small_RLE", "MR_small_jp2klossless", "SC_rgb_rle_2frame", "image_dfl",
             "MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm")  # fmt: skip
    return made + [(DICOM / f"{name}.dcm").read_bytes() for name in names]


GRID: Final = Grid((8, 8, 8), (2.0, 2.0, 2.0))
TARGETS: Final[Mapping[str, Target]] = {
    "png": Target(picture, _png),
    "jpeg": Target(picture, _jpeg, slow=True),
    "tiff": Target(picture, _tiff, slow=True),
    "npy-picture": Target(picture, _npy),
    "npy-volume": Target(decode_volume, lambda: [pictures.npy_of(np.zeros((4, 5, 6), np.float32))]),
    "nifti": Target(study("a.nii"), _nifti, slow=True),
    "nifti-gz": Target(study("a.nii.gz"), lambda: [gzip.compress(each) for each in _nifti()], slow=True),
    "nifti-volume": Target(study("a.nii", GRID), _nifti, slow=True),
    "metaimage": Target(study("a.mha"), _metaimage, slow=True),
    "nrrd": Target(study("a.nrrd"), _nrrd, slow=True),
    "geotiff": Target(study("a.tif"), _geotiff, slow=True),
    "dicom": Target(study("a.dcm"), _dicom, slow=True),
    "jpeg-2000": Target(study("a.jp2"), lambda: [pictures.saved(pictures.noise(16, 17, 3), "JPEG2000")], slow=True),
    "webp": Target(study("a.webp"), lambda: [pictures.saved(pictures.noise(16, 17, 3), "WEBP")], slow=True),
    "npy-points": Target(points, lambda: [to_npy(np.zeros((5, 2), np.float32))]),
}  # fmt: skip

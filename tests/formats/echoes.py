"""Results as a node would send them, without one: each item comes back as it is, or changed, with a record."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom

from ddib_fed.data.pictures import decode_image, decode_volume, encode_png, encode_volume, holds_volume
from ddib_fed.data.study import ItemResult, Options, Study, StudyResults
from ddib_fed.recognition import open_paths
from ddib_fed.record import Part, PictureFigures, Record, WrittenFile
from tests.data_modules.picture_examples import chunks

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIFTI = Path(nibabel.__file__).parent / "tests" / "data"
HOUNSFIELD = (1.0, -1024.0, 16, -1024.0, 3071.0)
"""Slope, intercept, bits, low and high of a target whose units are those of CT."""
BYTES = (1.0, 0.0, 8, 0.0, 255.0)
ASKED = "a5" * 32
"""Digest of what was asked for the items."""


def only(path: Path, **options: object) -> Study:
    (study,) = open_paths([path], Options(**options)).studies  # type: ignore[arg-type]
    return study


def figures(pixels: np.ndarray, scale: tuple = BYTES) -> PictureFigures:
    """What a node says of a picture or a volume."""
    slope, intercept, bits, low, high = scale
    *depth, height, width = pixels.shape[:-1]
    return PictureFigures(
        depth=depth[0] if depth else None, height=height, width=width, slope=slope, intercept=intercept, bits=bits,
        low=low, high=high, edge_correlation=0.5,
    )  # fmt: skip


def decoded(content: bytes) -> np.ndarray:
    """The picture (H, W, C) or the volume (D, H, W, C) in a file."""
    return decode_volume(content) if holds_volume(content) else decode_image(content).pixels


def record(item: bytes, png: bytes, scale: tuple = BYTES, asked: str = ASKED, **changes: object) -> Record:
    """The record of one item."""
    return Record(
        source_institution="north.example", source_domain="scans", target_institution="south.example",
        target_domain="relief", source_model_sha256="ab" * 32, target_model_sha256="cd" * 32,
        input_sha256=hashlib.sha256(item).hexdigest(), latent_sha256=hashlib.sha256(item + b"latent").hexdigest(),
        picture=figures(decoded(png), scale), seconds={"encode": 1.0}, wire_bytes=100, doubtful=False,
        doubts=(), asked_sha256=asked,
        files={Part.TRANSLATION.value: WrittenFile(file="x", sha256=hashlib.sha256(png).hexdigest())},
        **changes,
    )  # fmt: skip


def results(
    study: Study, change: Callable[[np.ndarray], np.ndarray] = lambda numbers: numbers, scale: tuple = BYTES
) -> list[ItemResult | None]:
    """File and record of each item, whose numbers are those that were sent, changed."""
    found: list[ItemResult | None] = []
    dtype = np.uint8 if scale[2] == 8 else np.uint16
    for item in study.items():
        numbers = change(decoded(item).astype(np.float64))
        made = np.rint((numbers - scale[1]) / scale[0]).clip(0, np.iinfo(dtype).max).astype(dtype)
        png = (encode_volume if made.ndim == 4 else encode_png)(made)
        found.append(ItemResult(png, record(item, png, scale)))
    return found


def echo(study: Study, **options: object) -> StudyResults:
    return StudyResults.of(results(study, **options))  # type: ignore[arg-type]


def require_pixels_alone(study: Study) -> None:
    """An item is a PNG of three kinds of chunks, or a .npy, and is made again from its pixels byte for byte."""
    for item in study.items():
        if item.startswith(b"\x93NUMPY"):
            header = item[10 : 10 + int.from_bytes(item[8:10], "little")].decode()
            assert set(eval(header)) == {"descr", "fortran_order", "shape"}
        else:
            assert set(chunks(item)) == {b"IHDR", b"IDAT", b"IEND"}
            assert item == encode_png(decode_image(item).pixels)

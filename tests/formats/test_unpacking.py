"""Small files that would unpack to gigabytes are refused before they do, each read in a process of its own."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zlib

import nibabel
import numpy as np
import pydicom
import pytest
import rasterio
from PIL import Image

from tests.formats.echoes import DICOM
from tests.formats.maps import WHERE

READ = """
import sys; from pathlib import Path
from ddib_fed.errors import DdibError
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.study import Options
import PIL.Image, pydicom.pixels, nibabel, rasterio.io
def peak(): return next(int(l.split()[1]) // 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = peak()
bad = []
try:
    found = open_paths([Path(sys.argv[1])], Options(), bad=bad)
    said = f"read {found.studies[0].planes}" if found.studies else f"{len(bad)} bad"
except DdibError as error: said = error.detail + " | " + error.hint
said = bad[0][1].detail + " | " + bad[0][1].hint if len(bad) == 1 else said
print(peak() - before, said)
"""


def zeros(size, packer):
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block + again * (size // (1 << 24) - 1)


def jpeg_in_dicom(path):
    """64 million pixels where the header says 262,144."""
    picture = io.BytesIO()
    Image.new("L", (8000, 8000)).save(picture, "JPEG")
    dataset = pydicom.dcmread(DICOM / "JPEG2000.dcm")
    dataset.PixelData = pydicom.encaps.encapsulate([picture.getvalue()])
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.save_as(path)


def wide_volume(path):
    """400 million bytes that become 64-bit floats."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype("i4")
    header.set_data_shape((1000, 1000, 400))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    raw = header.binaryblock
    content = gzip.compress(raw[:112] + struct.pack("<ff", 2, 1) + raw[120:] + bytes(4))
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    path.write_bytes(content + zeros(1_600_000_000, packer) + packer.flush())


def map_of_wide_numbers(path):
    """Three bands of 64-bit floats, 3.2 GB, none of which the file stores."""
    settings = {"count": 3, "height": 11_585, "width": 11_585, "dtype": "float64", **WHERE}
    with rasterio.open(
        path, "w", "GTiff", tiled=True, sparse_ok=True, blockxsize=4096, blockysize=4096, **settings
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("a.dcm", jpeg_in_dicom, "holds 8000 x 8000 pixels, its header says 1024 x 256"),
        ("a.nii.gz", wide_volume, "bytes"),
        ("a.tif", map_of_wide_numbers, "bytes"),
    ],
)
def test_a_small_file_does_not_take_much_memory(name, write, says, tmp_path):
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 4_000_000
    grown, said = read(tmp_path / name)
    assert says in said
    assert said.partition(" | ")[2], "a hint says what helps"
    assert grown < 300


def read(path):
    run = [sys.executable, "-W", "ignore", "-c", READ, str(path)]
    grown, _, said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.partition(" ")
    return int(grown), said.strip()

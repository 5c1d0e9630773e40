"""Reading takes no more memory than its header states, and what is refused takes little; each file is read in a process
of its own.
"""

import gzip
import io
import json
import shutil
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

from tests.formats.dicom.files import write_series
from tests.formats.echoes import DICOM
from tests.formats.maps import WHERE, write_map

READ = """
import json, os, sys, traceback; from pathlib import Path
from ddib_fed.errors import DdibError
from ddib_fed.recognition import open_paths
from ddib_fed.data.study import Options
from ddib_fed.data.pictures import ImageLimits
from ddib_fed.formats.dicom import pydicom as decoders
import PIL.Image, nibabel, rasterio.io, rasterio.fill, tifffile
decoders()
stated, check = [0], ImageLimits.check_memory
def spied(limits, size, *more):
    stated.append(size >> 20)
    check(limits, size, *more)
ImageLimits.check_memory = spied
def peak(): return next(int(l.split()[1]) // 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
def look(path):
    before, bad = peak(), []
    try:
        found = open_paths([path], Options(), bad=bad)
        said = f"read {sum(1 for _ in found.studies[0].items())}" if found.studies else f"{len(bad)} bad"
    except DdibError as error: said = error.detail + " | " + error.hint
    said = bad[0][1].detail + " | " + bad[0][1].hint if len(bad) == 1 else said
    print(json.dumps([peak() - before, max(stated), said]), flush=True)
for line in sys.stdin:
    if (child := os.fork()) == 0:
        try: look(Path(line[:-1]))
        except BaseException: traceback.print_exc(); os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]: print('[0, 0, "the process ended"]', flush=True)
"""


@pytest.fixture(scope="module")
def read():
    """Read a file in a fresh process, a fork of one that has imported everything: MiB it took and stated, and words."""
    command = [sys.executable, "-W", "ignore", "-c", READ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def look(path):
            print(path, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield look
        process.stdin.close()


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


def jpeg_behind_a_comment(path):
    """64 million pixels, before which a comment looks like a JPEG 2000 codestream of the header's size."""
    jpeg_in_dicom(path)
    dataset = pydicom.dcmread(path)
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    fake = b"\xff\x4f\xff\x51" + struct.pack(">2H4L16xH", 41, 0, 256, 1024, 0, 0, 1)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(fake)) + fake
    dataset.PixelData = pydicom.encaps.encapsulate([frame[:2] + b"\xff\xd0" + comment + frame[2:]])
    dataset.save_as(path)


def wide_volume(path):
    """400 million bytes that become 64-bit floats."""
    nifti(path, (1000, 1000, 400), "<i4")
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    path.write_bytes(path.read_bytes() + zeros(1_600_000_000, packer) + packer.flush())


def map_of_wide_numbers(path):
    """Three bands of 64-bit floats, 3.2 GB, none of which the file stores."""
    settings = {"count": 3, "height": 11_585, "width": 11_585, "dtype": "float64", **WHERE}
    with rasterio.open(
        path, "w", "GTiff", tiled=True, sparse_ok=True, blockxsize=4096, blockysize=4096, **settings
    ):
        pass


def jpeg_2000(path, side):
    values = np.add.outer(np.arange(side), np.arange(side)).astype(np.uint16)
    (made,) = write_series(path.parent / "plain", values[None])
    dataset, picture = pydicom.dcmread(made), io.BytesIO()
    shutil.rmtree(made.parent)
    Image.fromarray(values).save(picture, "JPEG2000", irreversible=False, no_jp2=True)
    dataset.PixelData = pydicom.encaps.encapsulate([picture.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    dataset.save_as(path)


def rle(path, side, stated=None, **changes):
    """One slice of runs of 128 pixels, about 64 times as large as its file."""
    (made,) = write_series(path.parent / "plain", np.zeros((1, 4, 4), int), **changes)
    dataset = pydicom.dcmread(made)
    shutil.rmtree(made.parent)
    segments = [bytes([129, byte, 129, 99]) * (side * side // 256) for byte in (1, 2)]
    header = struct.pack("<16L", 2, 64, 64 + len(segments[0]), *[0] * 13)
    dataset.PixelData = pydicom.encaps.encapsulate([header + b"".join(segments)])
    dataset["PixelData"].VR = "OB"
    dataset.Rows = dataset.Columns = stated or side
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset.save_as(path)


def jpeg_2000_of_many_samples(path):
    """16,384 samples of 262,144 pixels, of each of which a decoder would make four bytes."""
    dataset = pydicom.dcmread(DICOM / "JPEG2000.dcm")
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    at = frame.index(b"\xff\x4f\xff\x51") + 40
    samples = struct.pack(">H", 16_384) + frame[at + 2 : at + 5] * 16_384
    length = struct.pack(">H", (38 + 3 * 16_384) & 0xFFFF)
    frame = frame[: at - 36] + length + frame[at - 34 : at] + samples + frame[at + 5 :]
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    dataset.save_as(path)


def jpeg_2000_behind_another(path):
    """A box that holds what looks like the 1024 x 256 pixels of the header, and then 64 million pixels."""
    dataset, picture = pydicom.dcmread(DICOM / "JPEG2000.dcm"), io.BytesIO()
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    Image.new("L", (8000, 8000)).save(picture, "JPEG2000")
    boxes = picture.getvalue()
    said = frame[frame.index(b"\xff\x4f\xff\x51") :][:100]
    at = boxes.index(b"jp2c") - 4
    boxes = boxes[:at] + struct.pack(">I", 8 + len(said)) + b"uuid" + said + boxes[at:]
    dataset.PixelData = pydicom.encaps.encapsulate([boxes])
    dataset.save_as(path)


def nifti(path, shape, kind="<i2", values=b"", *, extension=b"", level=1):
    """A compressed volume by its header, with slope and intercept."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352 + len(extension)
    raw = header.binaryblock
    opening = raw[:112] + struct.pack("<ff", 2, 1) + raw[120:] + (b"\1\0\0\0" if extension else bytes(4))
    path.write_bytes(gzip.compress(opening + extension + values, level))


def extension_without_end(path):
    """An extension of the header that says that it is 2 GB, and unpacks to 1 GB."""
    nifti(path, (4, 4, 4), extension=struct.pack("<ii", 2**31 - 16, 6) + bytes(8))
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    path.write_bytes(path.read_bytes() + zeros(1 << 30, packer) + packer.flush())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("a.dcm", jpeg_in_dicom, "holds 8000 x 8000 pixels, its header says 1024 x 256"),
        ("a.dcm", jpeg_behind_a_comment, "a compressed picture states no size"),
        ("a.dcm", lambda path: rle(path, 11_776, stated=16), "run lengths of more than its 256 pixels"),
        ("a.dcm", lambda path: rle(path, 128, stated=65_535), "MiB of memory"),
        ("a.dcm", jpeg_2000_of_many_samples, "holds 1024 x 256 x 16384 pixels"),
        ("a.dcm", jpeg_2000_behind_another, "a compressed picture states no size"),
        ("a.nii.gz", extension_without_end, "all its values are 1,"),
        ("a.nii.gz", wide_volume, "MiB of memory"),
        ("a.tif", map_of_wide_numbers, "MiB of memory"),
    ],
)
def test_a_small_file_does_not_take_much_memory(name, write, says, tmp_path, read):
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 5_000_000
    grown, _, said = read(tmp_path / name)
    assert says in said
    assert said.partition(" | ")[2], "a hint says what helps"
    assert grown < 300


def map_with_holes(path):
    values = np.add.outer(np.arange(3_000), np.arange(3_000))[None].astype(np.float32)
    write_map(path, np.where(values % 500 < 100, -1, values), nodata=-1, compress="deflate")


def volume(path):
    nifti(path, (200, 200, 250), values=np.arange(10_000_000, dtype="<i2").tobytes())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("run lengths.dcm", lambda path: rle(path, 3_072)),
        ("a.dcm", lambda path: jpeg_2000(path, 2_000)),
        ("volume.nii.gz", volume),
        ("map.tif", map_with_holes),
    ],
)
def test_reading_takes_no_more_memory_than_its_header_states(name, write, tmp_path, read):
    """Up to the items that are sent; nor does a header state several times what is taken."""
    write(tmp_path / name)
    grown, stated, said = read(tmp_path / name)
    assert said.startswith("read ")
    assert stated / 3 < grown < stated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "whole", "damaged"),
    [
        ("SC_rgb_jpeg_lossy_gdcm", b"\xff\xd8\xff\xdb", b"\xff\xd8\xff\0"),
        ("MR_small_jp2klossless", b"\0\1\x8f\1\1", b"\0\1\xff\1\1"),
        ("SC_rgb_jpeg_gdcm", b"\xff\xc3\0\x11\x08", b"\xff\xc3\0\x11\xff"),
        ("MR_small_jpeg_ls_lossless", b"\xff\xf7\0\x0b\x10", b"\xff\xf7\0\x0b\xff"),
    ],
)
def test_a_damaged_frame_does_not_end_the_process(name, whole, damaged, tmp_path, read):
    """GDCM, where it is installed, ends it on all of them."""
    content = (DICOM / f"{name}.dcm").read_bytes()
    assert content.count(whole) == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(whole, damaged))
    assert "cannot be read" in read(tmp_path / "a.dcm")[2]

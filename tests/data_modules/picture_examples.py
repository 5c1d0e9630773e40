"""Files of pictures, made by hand or by libraries that the code under test does not use for them."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image


def noise(height: int, width: int, channels: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """(H, W, C) of any value that the type can hold."""
    kind = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    if kind.kind == "f":
        return rng.normal(0, 100, (height, width, channels)).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, (height, width, channels), dtype=kind, endpoint=True)


def saved(pixels: np.ndarray, format_name: str, mode: str | None = None, **options) -> bytes:
    """What Pillow writes."""
    file = io.BytesIO()
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    image = Image.fromarray(squeezed)
    (image.convert(mode) if mode else image).save(file, format_name, **options)
    return file.getvalue()


ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
"""First row and column, and steps down and to the right, of each pass of an interlaced PNG."""


def png_of(pixels: np.ndarray, *, interlace: bool = False, transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG of 8 or 16 bits, with or without alpha, written chunk by chunk (ISO/IEC 15948); rows without a filter."""
    stored = pixels.astype(pixels.dtype.newbyteorder(">"))
    passes = [stored[y::dy, x::dx] for y, x, dy, dx in (ADAM7 if interlace else [(0, 0, 1, 1)])]
    rows = b"".join(b"\0" + row.tobytes() for each in passes for row in each if row.size)
    height, width, channels = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, interlace)
    hidden = chunk(b"tRNS", struct.pack(f">{channels}H", *transparent)) if transparent else b""
    parts = chunk(b"IHDR", header) + hidden + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff_of(pixels: np.ndarray, **options) -> bytes:
    """What tifffile writes, one page."""
    file = io.BytesIO()
    channels = pixels.shape[2]
    if options.get("planarconfig") == "separate":
        pixels = np.moveaxis(pixels, 2, 0)
    options = {"photometric": "rgb" if channels > 2 else "minisblack", "metadata": None, **options}
    tifffile.imwrite(file, pixels[..., 0] if channels == 1 else pixels, **options)
    return file.getvalue()


def npy_of(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def chunks(content: bytes) -> list[bytes]:
    """The names of a PNG's chunks."""
    names, at = [], 8
    while at < len(content):
        names.append(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    return names


def forged_png(height: int, width: int, depth: int = 8, colour: int = 0, packed: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", packed or zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def with_chunk(content: bytes, name: bytes, inside: bytes) -> bytes:
    return content[:33] + chunk(name, inside) + content[33:]


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[274] = orientation
    return block.tobytes()


def lzw(content: bytes) -> bytes:
    """LZW as TIFF 6.0 has it, without compressing: literals of nine bits, the table cleared before it grows."""
    codes = []
    for start in range(0, len(content), 200):
        codes += [256, *content[start : start + 200]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def raw_tiff(
    pixels: np.ndarray, compression: int, strip: bytes, *, predictor: int = 1, photometric: int | None = None
) -> bytes:
    """A little-endian TIFF of one strip, written field by field (TIFF 6.0)."""
    height, width, channels = pixels.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    strip_at, bits_at = 8, 8 + len(strip) + len(strip) % 2
    bits, formats = [8 * pixels.dtype.itemsize] * channels, [sample_format] * channels
    lists = struct.pack(f"<{channels}H", *bits) + struct.pack(f"<{channels}H", *formats)

    def several(tag: int, at: int, values: list[int]) -> tuple[int, int, int, int]:
        packed = int.from_bytes(struct.pack(f"<{channels}H", *values), "little")
        return tag, 3, channels, packed if channels < 3 else at

    fields = [
        (256, 4, 1, width), (257, 4, 1, height), several(258, bits_at, bits), (259, 3, 1, compression),
        (262, 3, 1, photometric if photometric is not None else 2 if channels >= 3 else 1), (273, 4, 1, strip_at),
        (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(strip)), (284, 3, 1, 1),
        (317, 3, 1, predictor), *([(338, 3, 1, 2)] if channels in {2, 4} else []),
        several(339, bits_at + 2 * channels, formats),
    ]  # fmt: skip
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *f) for f in fields) + bytes(4)
    at = bits_at + len(lists)
    return b"II*\0" + struct.pack("<I", at) + strip + bytes(len(strip) % 2) + lists + directory


def differences(pixels: np.ndarray) -> bytes:
    first = np.zeros_like(pixels[:, :1])
    return np.diff(pixels, axis=1, prepend=first).tobytes()


def deep_png(side: int, colour: int, samples: int) -> bytes:
    """A PNG of 16 bits whose file is small: every row is the same."""
    row = b"\0" + bytes([7]) * (2 * samples * side)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")

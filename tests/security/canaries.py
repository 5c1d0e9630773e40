"""Files with a canary in every place where a person's name can stand, whole ones and damaged ones."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.data_modules.picture_examples import chunk
from tests.node.picture_examples import noise, to_bits

CANARY = "Lovelace-Ada-1815-12-10"
XMP = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{CANARY}</dc:creator></x:xmpmeta>'


def icc() -> bytes:
    """A profile whose description is the canary, with a head as the standard has it."""
    text = CANARY.encode()
    tag = b"desc" + bytes(4) + len(text).to_bytes(4, "big") + text
    table = (1).to_bytes(4, "big") + b"desc" + (144).to_bytes(4, "big") + len(tag).to_bytes(4, "big")
    size = 128 + len(table) + len(tag)
    head = size.to_bytes(4, "big") + b"lcms" + bytes(4) + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(88)
    return head + table + tag


def exif() -> Image.Exif:
    made = Image.Exif()
    made[270], made[315], made[40092] = CANARY, CANARY, CANARY.encode("utf-16-le")
    return made


def whole(folder: Path) -> list[Path]:
    """Pictures that a node translates; each name is the canary with its format."""
    text = PngInfo()
    text.add_text("Patient", CANARY)
    text.add_itxt("XML:com.adobe.xmp", XMP)
    pixels = [to_bits(noise(seed=seed), np.uint8) for seed in range(41, 45)]
    paths = [folder / f"{CANARY}-{suffix}.{suffix}" for suffix in ("png", "jpg", "tif", "npy")]
    Image.fromarray(pixels[0]).save(paths[0], pnginfo=text, icc_profile=icc(), exif=exif())
    Image.fromarray(pixels[1]).save(
        paths[1], quality=95, exif=exif(), icc_profile=icc(), comment=CANARY.encode(), xmp=XMP.encode()
    )
    Image.fromarray(pixels[2]).save(paths[2], exif=exif(), icc_profile=icc())
    np.save(paths[3], pixels[3].astype(np.float32))
    return paths


TOLERATED = {"PNG with a broken chunk", "PNG with an unknown critical chunk"}
"""Of `damaged`: pixels are whole, and are read."""


def damaged() -> dict[str, bytes]:
    """Damaged and foreign files, with the canary where a parser might quote it."""
    text = CANARY.encode()
    png = io.BytesIO()
    Image.fromarray(to_bits(noise(seed=46), np.uint8)).save(png, "PNG")
    good = png.getvalue()
    dicom = bytes(128) + b"DICM" + b"\x10\x00\x10\x00PN" + struct.pack("<H", len(text)) + text
    head = f"{{'descr': '{CANARY}', 'fortran_order': False, 'shape': (16, 16), }}".encode()
    header = head + b" " * (-(10 + len(head) + 1) % 64) + b"\n"
    tiff = io.BytesIO()
    Image.fromarray(to_bits(noise(seed=47), np.uint8)).save(tiff, "TIFF", exif=exif(), compression="tiff_lzw")
    torn = bytearray(tiff.getvalue())
    torn[40:120] = text * 3 + torn[40 + 3 * len(text) : 120]
    return {
        "DICOM": dicom,
        "npy of a type": b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(256),
        "PNG with a broken chunk": good[:33] + chunk(b"tEXt", b"Patient\0" + text)[:-2] + b"\0\0" + good[33:],
        "PNG cut off": good[:33] + chunk(b"tEXt", b"Patient\0" + text),
        "PNG with an unknown critical chunk": good[:33] + chunk(b"LOVE", text) + good[33:],
        "TIFF with torn strips": bytes(torn),
        "JPEG without a scan": b"\xff\xd8\xff\xfe" + struct.pack(">H", len(text) + 2) + text + b"\xff\xd9",
        "text": text * 20,
    }

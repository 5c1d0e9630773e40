"""Decodes JPEG lossless, JPEG-LS and JPEG 2000, as a plugin of pydicom; its GDCM ends the process on damaged frames."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final

from pydicom import uid
from pydicom.pixels import get_decoder

LOSSLESS: Final = (uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_2000: Final = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
DECODER_DEPENDENCIES: Final = dict.fromkeys(
    [*LOSSLESS, *uid.JPEGLSTransferSyntaxes, *JPEG_2000], ("imagecodecs",)
)


def is_available(_: str) -> bool:
    return find_spec("imagecodecs") is not None


def decode(frame: bytes, runner: Any) -> bytearray:
    """Return the pixels of a frame, as pydicom asks its plugins."""
    import imagecodecs

    if runner.transfer_syntax in JPEG_2000:
        pixels = imagecodecs.jpeg2k_decode(frame)
        if runner.photometric_interpretation in {"YBR_ICT", "YBR_RCT"}:
            runner.set_option("photometric_interpretation", "RGB")
    else:
        # Without a marker at the end, JPEG lossless would be filled up with grey, and JPEG-LS be searched for seconds.
        if b"\xff\xd9" not in frame[frame.rfind(b"\xff\xda") :]:
            raise ValueError("a compressed picture is cut off")
        lossless = runner.transfer_syntax in LOSSLESS
        pixels = imagecodecs.jpeg8_decode(frame) if lossless else imagecodecs.jpegls_decode(frame)
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytearray(pixels.tobytes())


for _syntax in DECODER_DEPENDENCIES:
    with suppress(ValueError):  # it has none of HTJ2K
        get_decoder(_syntax).remove_plugin("gdcm")
    get_decoder(_syntax).add_plugin("imagecodecs", (__name__, "decode"))

"""Decodes JPEG lossless and JPEG-LS, as a plugin of pydicom; its plugin GDCM ends the process on damaged frames."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

from pydicom import uid
from pydicom.pixels import get_decoder

LOSSLESS: Final = (uid.JPEGLossless, uid.JPEGLosslessSV1)
DECODER_DEPENDENCIES: Final = dict.fromkeys([*LOSSLESS, *uid.JPEGLSTransferSyntaxes], ("imagecodecs",))


def is_available(_: str) -> bool:
    return find_spec("imagecodecs") is not None


def decode(frame: bytes, runner: Any) -> bytearray:
    """Return the pixels of a frame, as pydicom asks its plugins."""
    import imagecodecs

    # Without a marker at the end, JPEG lossless would be filled up with grey, and JPEG-LS be searched for seconds.
    if b"\xff\xd9" not in frame[frame.rfind(b"\xff\xda") :]:
        raise ValueError("a compressed picture is cut off")
    found = imagecodecs.jpeg8_decode if runner.transfer_syntax in LOSSLESS else imagecodecs.jpegls_decode
    pixels = found(frame)
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytearray(pixels.tobytes())


for _syntax in DECODER_DEPENDENCIES:
    get_decoder(_syntax).remove_plugin("gdcm")
    get_decoder(_syntax).add_plugin("imagecodecs", (__name__, "decode"))

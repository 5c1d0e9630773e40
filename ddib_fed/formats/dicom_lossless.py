"""Decodes JPEG lossless and JPEG-LS, as a plugin of pydicom; its plugin GDCM ends the process on damaged frames."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

from pydicom import uid

DECODER_DEPENDENCIES: Final = dict.fromkeys(
    (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEGLSNearLossless), ("imagecodecs",)
)


def is_available(_: str) -> bool:
    """Whether frames can be decoded, as pydicom asks its plugins."""
    return find_spec("imagecodecs") is not None


def decode(frame: bytes, runner: Any) -> bytearray:
    """Return the pixels of a frame, as pydicom asks its plugins."""
    import imagecodecs

    # Without a marker at the end, JPEG lossless would be filled up with grey, and JPEG-LS be searched for seconds.
    if b"\xff\xd9" not in frame[frame.rfind(b"\xff\xda") :]:
        raise ValueError("a compressed picture is cut off")
    is_ls = runner.transfer_syntax in uid.JPEGLSTransferSyntaxes
    pixels = imagecodecs.jpegls_decode(frame) if is_ls else imagecodecs.jpeg8_decode(frame)
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytearray(pixels.tobytes())

"""Stops libtiff, which Pillow decodes TIFFs with, from writing to stderr past Python's logging.

Pillow turns its warnings off and leaves its errors on; each is raised as an exception too.
"""

from __future__ import annotations

import ctypes
import functools
from contextlib import suppress


@functools.cache
def silence_libtiff() -> None:
    """Turn off libtiff's own error messages in this process; nothing where Pillow has it built in out of reach."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):
        # The symbol is looked up in what Pillow's module was linked with: its own copy, or the system's.
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)

"""Stops libtiff, which Pillow decodes TIFFs with, from writing to stderr past Python's logging.

Pillow silences its warnings but not its errors; each error is also raised as an exception.
"""

from __future__ import annotations

import ctypes
import functools
from contextlib import suppress


@functools.cache
def silence_libtiff() -> None:
    """Silence libtiff's own error messages in this process, if its symbol is accessible in Pillow's build."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):
        # The symbol is looked up in the library that Pillow's module is linked with: its own copy, or the system's.
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)

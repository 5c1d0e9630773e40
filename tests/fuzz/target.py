"""What a target of the fuzzer is."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ddib_fed.data.pictures import ImageLimits

LIMITS: Final = ImageLimits(max_bytes=1 << 20, max_pixels=64 * 64)
MOST: Final = 1 << 16
"""Bytes of an input."""
NOW: Final = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Target:
    """One parser.

    Attributes:
        run: Parses.
        seeds: Inputs to begin with, made when they are asked for; at least one of them is valid.
        slow: Whether it takes about a millisecond, so that fewer executions are tried in the suite.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    slow: bool = False


@contextmanager
def as_file(data: bytes, name: str) -> Iterator[Path]:
    """The input as a file, for parsers that take a path."""
    with tempfile.TemporaryDirectory(
        prefix="ddib-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as at:
        path = Path(at) / name
        path.write_bytes(data)
        yield path

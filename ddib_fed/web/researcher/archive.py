"""Files as one zip archive, made while it is sent: nothing of it is kept on the disk or in memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

CHUNK: Final = 1 << 18


class _Sink(io.RawIOBase):
    """What was written since it was last taken; cannot go back."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        with memoryview(data) as view:  # type: ignore[arg-type]
            self._held += view
            return view.nbytes

    def take(self) -> bytes:
        taken = bytes(self._held)
        self._held.clear()
        return taken


def zipped(paths: Sequence[Path], root: Path) -> Iterator[bytes]:
    """The bytes of an archive of these files, not compressed again; files that are gone are left out."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for path in paths:
            if not path.is_file():
                continue
            about = zipfile.ZipInfo.from_file(path, path.relative_to(root.parent))
            with path.open("rb") as file, archive.open(about, "w") as entry:
                while chunk := file.read(CHUNK):
                    entry.write(chunk)
                    yield sink.take()
    yield sink.take()

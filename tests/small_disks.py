"""Disks that are full: small file systems in memory, where this user may mount one."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class SmallDisk:
    """A file system of some MiB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, *, leave: int = 0) -> None:
        """Leave so many bytes, about."""
        with suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while (free := shutil.disk_usage(self.folder).free) > leave:
                file.write(bytes(min(1 << 20, free - leave)))
        assert shutil.disk_usage(self.folder).free <= leave + 8192

    def free(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[SmallDisk]:
    """A file system of its own at a folder that is made; the test is skipped where none can be mounted."""
    folder.mkdir(parents=True, mode=0o700)
    options = f"size={mib}m,mode=0700"
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)

"""Lists the files to translate from the files and folders of a command line, with the name of each one's results.

A file's results are called as it is; below a folder the path is kept. Hidden files, and files whose suffix is that of
no format, are left out and counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddib_fed.client.payload import SUFFIXES
from ddib_fed.errors import FileMissing

HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to translate.

    Attributes:
        path: The file.
        file: What it is called in tables and records: its name, or its path below the folder that was given.
    """

    path: Path
    file: str

    @property
    def name(self) -> str:
        """`file` without its suffix: what its results are called."""
        return self.file.removesuffix(self.path.suffix)


@dataclass(frozen=True, slots=True)
class Found:
    """Every file to translate, in order, and how many were left out below folders, by suffix or as "hidden"."""

    files: tuple[FoundFile, ...]
    ignored: Counter[str]

    def ignored_line(self) -> str:
        """What was left out, for people; empty for nothing."""
        count = self.ignored.total()
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.ignored.most_common(6))
        return f"ignored {count:,} other file{'s' * (count != 1)} ({kinds})" if count else ""


def find_files(given: Sequence[Path], out: Path | None) -> Found:
    """The files that are given, and those below folders that are given, each file once.

    Args:
        given: Files and folders; one that does not exist stays, and is refused when it is read.
        out: Folder of the results, which is not looked into.

    Raises:
        FileMissing: A folder has no file to translate.
    """
    ignored: Counter[str] = Counter()
    found: dict[Path, FoundFile] = {}
    for path in given:
        if not path.is_dir():
            found.setdefault(path.absolute(), FoundFile(path, path.name))
            continue
        below = _below(path, out, ignored)
        for file in below:
            found.setdefault(file.absolute(), FoundFile(file, file.relative_to(path).as_posix()))
        if not below:
            raise FileMissing(
                f"{path} holds no file to translate",
                hint=f"known are {', '.join(sorted(SUFFIXES))}; `ls -la {path}` shows what is there",
                hop="client",
            )
    return Found(tuple(found.values()), ignored)


def _below(root: Path, out: Path | None, ignored: Counter[str]) -> list[Path]:
    """Files below a folder in the order of their paths, and folders that cannot be read: they are refused later."""
    without = None if out is None else out.resolve()
    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=lambda error: found.append(Path(error.filename))):
        here = Path(folder)
        ignored[HIDDEN] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [d for d in folders if not d.startswith(".") and (here / d).resolve() != without]
        for name in names:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES and not _is_special(here / name):
                found.append(here / name)
            else:
                ignored[suffix or "without suffix"] += 1
    ignored += Counter()  # drops what was counted zero times
    return sorted(found)


def _is_special(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device, from which a reader could wait for ever; a dead link is not."""
    return path.exists() and not path.is_file()

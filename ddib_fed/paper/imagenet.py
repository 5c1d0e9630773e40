"""Pictures by class for `--set pairs=`, and ILSVRC2012 development kits of users: classes by their numbers in models.

A class of the kit is its WordNet id. Models number the 1,000 ids in alphabetical order from 0; the kit numbers them
differently, from 1 (ILSVRC2012_ID); the two are never mixed here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ddib_fed.errors import FileMissing, InputError

CLASSES = 1_000
KIT = "ILSVRC2012_devkit_t12"
"""Name of the unpacked development kit, which lies beside the folder of pictures."""
_WNID = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC20\d\d_val_(\d{8})\.jpe?g", re.IGNORECASE)
_PICTURES = frozenset({".jpeg", ".jpg", ".png", ".tif", ".tiff", ".npy"})


class ClassTable(NamedTuple):
    """The classes of a kit, in the order of models; `number_of` gives the number in models of the kit's own."""

    wnids: tuple[str, ...]
    number_of: Mapping[int, int]


class PairedPicture(NamedTuple):
    """A picture to be translated to another class; `ordinal` counts the pictures of a class from 1."""

    path: Path
    source: int
    target: int
    ordinal: int


def paired_pictures(
    folder: Path,
    pairs: Sequence[tuple[int, int]],
    *,
    class_names: Sequence[str] = (),
    limit: int | None = None,
) -> tuple[PairedPicture, ...]:
    """Return pictures with target classes, of sub-folders called by class names, ids or numbers, or by the kit."""
    below = {p.name: p for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else {}
    known = {name: number for number, name in enumerate(class_names) if name in below}
    labels = folder.absolute().parent / KIT
    if known:
        by_class = {number: _pictures(below[name].rglob("*"), below[name]) for name, number in known.items()}
    else:
        by_class = validation_pictures(folder, labels if labels.is_dir() else None)
    if empty := [source for source, _ in pairs if not by_class.get(source)]:
        raise FileMissing(f"{folder} has no picture of class {empty[0]}")
    return tuple(
        PairedPicture(path, source, target, ordinal)
        for source, target in pairs
        for ordinal, path in enumerate(by_class[source][:limit], start=1)
    )


def validation_pictures(folder: Path, labels: Path | None = None) -> dict[int, list[Path]]:
    """Return the pictures of the validation part by class, each in the order of their names."""
    if not folder.is_dir():
        raise FileMissing(f"no such folder: {folder}")
    table = read_labels(labels) if labels else None
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    by_class: dict[int, list[Path]] = {}
    if below:
        numbers = _folder_numbers([p.name for p in below], table)
        by_class = {numbers[each.name]: _pictures(each.iterdir(), each) for each in below}
    elif labels is None or table is None:
        problem = f"{folder} has no sub-folders, so its classes are known from the kit alone"
        raise FileMissing(problem, hint=f"unpack {KIT} beside it")
    else:
        truth = read_truth(labels, table)
        for path in _pictures(folder.iterdir(), folder):
            number = _VALIDATION.fullmatch(path.name)
            if not number or not 1 <= int(number[1]) <= len(truth):
                raise InputError(
                    f"{path.name} is none of the kit's pictures, ILSVRC2012_val_00000001.JPEG to {len(truth):08}"
                )
            by_class.setdefault(truth[int(number[1]) - 1], []).append(path)
    if not any(by_class.values()):
        raise FileMissing(f"no pictures in {folder}")
    return by_class


def read_labels(folder: Path) -> ClassTable:
    """The classes of a development kit, from the leaves of meta.mat; an entry with children is a group of classes."""
    from scipy.io import loadmat

    path = _find(folder, "meta.mat")
    if path is None:
        raise FileMissing(
            f"no meta.mat lies below {folder}",
            hint="name the unpacked ILSVRC2012_devkit_t12, which image-net.org offers to registered users",
        )
    try:
        table = loadmat(str(path), squeeze_me=True, variable_names=["synsets"])["synsets"].reshape(-1)
        rows = [(str(r["WNID"]), int(r["ILSVRC2012_ID"])) for r in table if int(r["num_children"]) == 0]
    except Exception as error:  # SciPy raises any exception on a malformed file
        raise InputError(f"{path} is no table of ILSVRC2012: {type(error).__name__}: {error}") from error
    rows.sort()
    wnids, own = tuple(row[0] for row in rows), [row[1] for row in rows]
    if not rows or sorted(own) != list(range(1, len(rows) + 1)) or len(set(wnids)) != len(wnids):
        raise InputError(f"{path} does not number its {len(rows)} classes from 1, each once")
    if wrong := [w for w in wnids if not _WNID.fullmatch(w)]:
        raise InputError(f"{path} has {wrong[0][:40]!r}, which is no WordNet id such as n02119789")
    return ClassTable(wnids, {number: i for i, number in enumerate(own)})


def read_truth(folder: Path, table: ClassTable) -> tuple[int, ...]:
    """Read the numbers in models of the validation pictures 1, 2, ..., in this order."""
    path = _find(folder, "*validation_ground_truth.txt")
    if path is None:
        raise FileMissing(f"no *validation_ground_truth.txt lies below {folder}")
    try:
        return tuple(table.number_of[int(text)] for text in path.read_text(encoding="utf-8").split())
    except (OSError, ValueError, KeyError) as error:
        known = len(table.wnids)
        raise InputError(f"{path} is no list of the kit's {known} ids: {error}") from error


def _find(folder: Path, pattern: str) -> Path | None:
    return min(folder.rglob(pattern), key=lambda p: (len(p.parts), p), default=None)


def _folder_numbers(names: Sequence[str], table: ClassTable | None) -> dict[str, int]:
    """From the names of sub-folders, which are WordNet ids or numbers, to numbers in models."""
    if all(n.isdecimal() for n in names):
        numbers = {name: int(name) for name in names}
        if len(set(numbers.values())) != len(names):
            raise InputError("two sub-folders have the same class number")
        if table and max(numbers.values()) >= len(table.wnids):
            above = max(numbers.values())
            raise InputError(f"sub-folder {above}: the classes are 0 to {len(table.wnids) - 1}")
        return numbers
    if wrong := [n for n in names if not _WNID.fullmatch(n)]:
        raise InputError(f"the sub-folder {wrong[0]!r} is called neither by a WordNet id nor by a number")
    if table is None and len(names) != CLASSES:
        raise FileMissing(
            f"{len(names)} sub-folders are called by WordNet ids; their numbers depend on all {CLASSES}",
            hint=f"unpack {KIT} beside their folder, or call the sub-folders by their numbers (260, 261, ...)",
        )
    number = {wnid: i for i, wnid in enumerate(table.wnids if table else sorted(names))}
    if unknown := [n for n in names if n not in number]:
        raise InputError(f"the sub-folder {unknown[0]!r} is not one of the kit's classes")
    return {name: number[name] for name in names}


def _pictures(paths: Iterable[Path], root: Path) -> list[Path]:
    """Return the pictures among paths below a folder, by name; no hidden ones, nor those of hidden folders."""
    pictures = (p for p in paths if p.suffix.lower() in _PICTURES and p.is_file())
    return sorted(p for p in pictures if not any(part.startswith(".") for part in p.relative_to(root).parts))

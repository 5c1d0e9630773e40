"""The files of a job: given one by one, or the pictures of some classes in a folder."""

from __future__ import annotations

import importlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddib_fed.cli import options
from ddib_fed.cli.delivery import Input
from ddib_fed.cli.options import Classes, parse_pairs
from ddib_fed.client.payload import SUFFIXES, split_target
from ddib_fed.client.views import Domain, Domains
from ddib_fed.errors import DomainNotFound, FileMissing, UsageError
from ddib_fed.formats.recognition import files_below, format_of
from ddib_fed.names import names_apart


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to translate."""

    path: Path
    file: str


@dataclass(frozen=True, slots=True)
class Found:
    """Every file to translate, in order, and how many were left out below folders, by suffix or as "hidden"."""

    files: tuple[FoundFile, ...]
    ignored: Counter[str]

    def ignored_line(self) -> str:
        return ignored_line(self.ignored)


def find_files(given: Sequence[Path], out: Path | None, *, without: Iterable[Path] = ()) -> Found:
    """The files that are given, and those below folders that are given, each file once."""
    elsewhere = {path.absolute() for path in without}
    ignored: Counter[str] = Counter()
    found: dict[Path, FoundFile] = {}
    for path in given:
        if not path.is_dir():
            found.setdefault(path.absolute(), FoundFile(path, path.name))
            continue
        below = [file for file in _below(path, out, ignored) if file.absolute() not in elsewhere]
        for file in below:
            found.setdefault(file.absolute(), FoundFile(file, file.relative_to(path).as_posix()))
        if not below:
            raise _nothing_below(path)
    return Found(tuple(found.values()), ignored)


def ignored_line(ignored: Counter[str]) -> str:
    """What was left out below folders, for people; empty for nothing."""
    count = ignored.total()
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in ignored.most_common(6))
    return f"ignored {count:,} other file{'s' * (count != 1)} ({kinds})" if count else ""


def _below(root: Path, out: Path | None, ignored: Counter[str]) -> list[Path]:
    """Files below a folder in the order of their paths, and folders that cannot be read: they are refused later."""
    below = files_below(root, out)
    ignored += below.ignored
    found = list(below.unreadable)
    for path in below.files:
        suffix = path.suffix.lower()
        if format_of(path) is not None:
            continue
        if suffix in SUFFIXES:
            found.append(path)
        else:
            ignored[suffix or "without suffix"] += 1
    return sorted(found)


def _nothing_below(folder: Path) -> FileMissing:
    known, quoted = ", ".join(sorted(SUFFIXES)), shlex.quote(str(folder))
    hint = f"known are {known}; `ls -la {quoted}` shows what is there"
    return FileMissing(f"{folder} holds no file to translate", hint=hint, hop="client")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The files to send, in order."""

    paths: tuple[Path, ...]
    inputs: tuple[Input, ...]
    classes: tuple[tuple[str, str], ...] = ()
    said: str = ""

    @classmethod
    def files(
        cls,
        paths: Sequence[Path],
        out: Path | None = None,
        *,
        taken: Iterable[str] = (),
        without: Iterable[Path] = (),
    ) -> Chosen:
        """Files, and those below folders but for `out`; results have the same names, below a folder the same paths."""
        found = find_files(paths, out, without=without)
        files = [each.file for each in found.files]
        names = names_apart(files, lambda name: (each for each, _ in Input(name, "").file_names()), taken)
        longer = [
            f"{file} as {name}"
            for file, name in zip(files, names, strict=True)
            if name != file.removesuffix(Path(file).suffix)
        ]
        said = f"named by their suffix too, as results would clash: {', '.join(longer)}" if longer else ""
        return cls(
            tuple(each.path for each in found.files),
            tuple(Input(name, file) for name, file in zip(names, files, strict=True)),
            said="\n".join(filter(None, (found.ignored_line(), said))),
        )

    @property
    def by_class(self) -> bool:
        return bool(self.classes)


def choose(
    files: Sequence[Path],
    ask: Callable[[], Domains],
    target: str,
    *,
    pairs: str | None,
    labels: Path | None,
    limit: int | None,
    out: Path | None = None,
    taken: Iterable[str] = (),
    without: Iterable[Path] = (),
) -> Chosen:
    """The files given to `ddib translate`; `ask` asks the node for its domains, where classes are paired."""
    if pairs is None:
        options.refuse_idle(("labels", "limit"), "is for classes", hint="add --pairs 260:261, or omit it")
        return Chosen.files(files, out, taken=taken, without=without)
    options.refuse_idle(
        ("source_class", "target_class"), "is already set by --pairs", hint="omit one of them"
    )
    if len(files) != 1:
        raise UsageError(
            f"--pairs takes one folder, and {len(files)} files are given",
            hint="ddib translate FOLDER --pairs 260:261",
        )
    domains = ask()
    own, other = _own_classes(domains), _target_classes(domains, target)
    kit = importlib.import_module("ddib_fed.paper.imagenet")
    found = kit.paired_pictures(
        files[0], parse_pairs(pairs, own, other), class_names=own.names, labels=labels, limit=limit
    )
    return Chosen(
        tuple(each.path for each in found),
        tuple(
            Input(
                _stem(kit.translated_name(each.source, each.ordinal, each.target)),
                each.path.name,
                source=_stem(kit.source_name(each.source, each.ordinal)),
            )
            for each in found
        ),
        tuple((str(each.source), str(each.target)) for each in found),
    )


def _own_classes(domains: Domains) -> Classes:
    return Classes(f"{domains.institution}/{domains.domain}", domains.classes, domains.class_names)


def _target_classes(domains: Domains, target: str) -> Classes:
    """The classes of the target, or of the classifier that guides a model without classes."""
    institution, _ = split_target(target)
    found: Domain | None = next((each for each in domains.targets if each.institution == institution), None)
    if found is None or not found.domain:
        raise DomainNotFound(
            f"{target} is not ready, so its classes are not known" if found else f"{institution} is no peer",
            hint="ddib domains",
        )
    count = found.classes or found.guidance.classifier_classes
    return Classes(found.target, count, found.class_names)


def _stem(name: str) -> str:
    return name.removesuffix(".PNG")

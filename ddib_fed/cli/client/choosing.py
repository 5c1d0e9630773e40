"""The files of a job: given one by one, or the pictures of some classes in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddib_fed.cli import options
from ddib_fed.cli.client.delivery import Input
from ddib_fed.cli.client.folders import find_files
from ddib_fed.cli.options import Classes, parse_pairs
from ddib_fed.client.payload import split_target
from ddib_fed.client.views import Domain, Domains
from ddib_fed.datasets.imagenet import paired_pictures, source_name, translated_name
from ddib_fed.errors import DomainNotFound, UsageError
from ddib_fed.names import names_apart


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
        apart: bool = False,
        taken: Iterable[str] = (),
        without: Iterable[Path] = (),
    ) -> Chosen:
        """Files, and those below folders but for `out`; results have the same names, below a folder the same paths."""
        found = find_files(paths, out, apart=apart, without=without)
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
    apart: bool = False,
    taken: Iterable[str] = (),
    without: Iterable[Path] = (),
) -> Chosen:
    """The files given to `ddib translate`; `ask` asks the node for its domains, where classes are paired."""
    if pairs is None:
        options.refuse_idle(("labels", "limit"), "is for classes", hint="add --pairs 260:261, or omit it")
        return Chosen.files(files, out, apart=apart, taken=taken, without=without)
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
    found = paired_pictures(
        files[0], parse_pairs(pairs, own, other), class_names=own.names, labels=labels, limit=limit
    )
    return Chosen(
        tuple(each.path for each in found),
        tuple(
            Input(
                _stem(translated_name(each.source, each.ordinal, each.target)),
                each.path.name,
                source=_stem(source_name(each.source, each.ordinal)),
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

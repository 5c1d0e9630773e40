"""Items of a study as files in a folder, and the results of these files put together.

DIR/NAME.parts/items/0001.png     pixels of plane 1, nothing else: what is translated like any other file
DIR/NAME.parts/results/0001.png   its translation, with its record 0001.json
DIR/NAME.parts/output/...         what becomes of them, until all of it is on the disk
DIR/NAME.parts/placing/...        the same, while it takes the place of an earlier output
DIR/NAME.nii.gz, DIR/NAME.json    where it ends; then the parts are removed
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddib_fed.engine.record import DOUBTFUL_BELOW, Part, Translation, WrittenFile
from ddib_fed.errors import AlreadyExists, InputError, ItemNotFound, UsageError
from ddib_fed.files import has_sha256, parse_json, read_json, sync_folder, write_file
from ddib_fed.formats.study import Assembled, ItemResult, Origin, Study, Translated

FORMAT = 1
"""Of the section `study` of a record."""
MASK = "mask"
"""Of the file that is 0 where nothing was translated: NAME.mask.png, NAME.mask.nii.gz."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The files of a study on their way."""

    folder: Path
    items: tuple[Path, ...]
    results: Path

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class WrittenStudy:
    """The output of a study on the disk."""

    given: Path
    files: tuple[Path, ...]
    record: Path
    provenance: Translation
    report: dict[str, Any]
    said: tuple[str, ...]

    @property
    def kind(self) -> str:
        return str(self.report["kind"])

    @property
    def items(self) -> int:
        return len(self.report["items"])

    @property
    def refused(self) -> str:
        """Which items are not translated, and why, in a sentence; empty for none."""
        found = [item for item in self.report["items"] if item.get("refused")]
        if not found:
            return ""
        some = ", ".join(str(item["plane"] + 1) for item in found[:8]) + (", ..." if len(found) > 8 else "")
        why = "; ".join(dict.fromkeys(item["why"] for item in found if item.get("why")))
        said = f"{len(found)} of {self.items} items were refused, and are background ({some})"
        return f"{said}: {why}" if why else said

    @property
    def shown(self) -> Path:
        return self.files[0] if self.files[0].parent == self.record.parent else self.files[0].parent


def check_outputs(study: Study | Origin, out: Path, *, force: bool) -> None:
    """Return if the output of a study overwrites nothing that is not meant to be."""
    origin = study if isinstance(study, Origin) else study.origin
    given = origin.given.resolve()
    if given.is_dir() and out.resolve() == given:
        raise UsageError(
            f"the results would lie among the input's files in {out}", hint="another --out folder"
        )
    begun = (_placing(origin.name, out) / f"{origin.name}.json").exists()  # an interrupted run was at it
    for name in (*origin.outputs, *origin.beside, f"{origin.name}.json"):
        path = out / name
        for each in (path, *path.parents):
            if out in each.parents and each.exists() and each.resolve() in {given, *given.parents}:
                raise UsageError(f"the result would replace the input {each}", hint="another --out folder")
        if path.exists() and not (force or begun):
            raise AlreadyExists(
                f"{path} is there already, and is no result of this request for {origin.called}",
                hint="choose another --out folder, or add --force",
            )
    _require_same_series(origin, out)


def _require_same_series(origin: Origin, out: Path) -> None:
    """Return unless the output of another series is in the place of this one's."""
    path = out / f"{origin.name}.json"
    found = (read_json(path) or {}).get("study") if origin.series_sha256 and path.exists() else None
    other = found.get("series_sha256") if isinstance(found, dict) else None
    if other not in {None, origin.series_sha256}:
        raise AlreadyExists(
            f"{path} is the record of another series than {origin.called}, which is not overwritten",
            hint="choose another --out folder, or move that result away",
        )


def _placing(name: str, out: Path) -> Path:
    return out / f"{name}.parts" / "placing"


def write_items(study: Study, out: Path) -> Parts:
    """Write each item of a study as a file; one that is there with the same content stays."""
    folder = out / f"{study.name}.parts"
    (folder / "items").mkdir(parents=True, exist_ok=True)
    paths = []
    for at, content in zip(study.sent, study.items(), strict=True):
        suffix = ".npy" if content.startswith(b"\x93NUMPY") else ".png"
        path = folder / "items" / f"{at + 1:04}{suffix}"
        if not path.exists() or path.read_bytes() != content:
            write_file(path, content, private=True)
        paths.append(path)
    return Parts(folder, tuple(paths), folder / "results")


def read_results(parts: Parts, asked: str) -> list[ItemResult | None]:
    return [_result(item, parts.results, asked) for item in parts.items]


def _result(item: Path, results: Path, asked: str) -> ItemResult | None:
    path, record = results / f"{item.stem}.png", Translation.read(results / f"{item.stem}.json")
    if record is None or not path.is_file():
        return None
    if (record.asked_sha256, record.input_sha256) != (asked, _digest(item.read_bytes())):
        return None
    content = path.read_bytes()
    written, back = record.files.get(Part.TRANSLATION), results / f"{item.stem}.returned.png"
    if written is None or written.sha256 != _digest(content):
        return None
    return ItemResult(
        content, record, back.read_bytes() if Part.RETURNED in record.files and back.is_file() else None
    )


def write_outputs(
    study: Study,
    results: Sequence[ItemResult | None],
    out: Path,
    *,
    force: bool,
    why: Sequence[str] = (),
    doubtful_below: float = DOUBTFUL_BELOW,
) -> WrittenStudy:
    """Put the results of a study together, and write its files, and its record last."""
    check_outputs(study, out, force=force)
    with _naming(study):
        translated = Translated.of(results)
        made = study.assemble(translated)
    provenance, report = _record(study, translated, made, why or [""] * len(results), doubtful_below)
    document = {**provenance.stored(), "study": report}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    _place(study, made, (text + "\n").encode(), out)
    files, path = tuple(out / name for name in made.files), out / f"{study.name}.json"
    return WrittenStudy(study.given, files, path, provenance, report, made.said)


@contextmanager
def _naming(study: Study) -> Iterator[None]:
    """Inside, what is wrong with the results is said with the study that they are of."""
    try:
        yield
    except (InputError, ItemNotFound) as error:
        error.detail = f"{study.origin.called}: {error.detail}"
        error.args = (error.detail,)
        raise


def _place(study: Study, made: Assembled, record: bytes, out: Path) -> None:
    """Write an output beside an earlier one, and let it take its place once all of it is on the disk, the
    record last.
    """
    placing = _placing(study.name, out)
    staged = placing.with_name("output")
    for each in (staged, placing):
        shutil.rmtree(each, ignore_errors=True)
    last = f"{study.name}.json"
    for name, content in {**made.files, last: record}.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(staged / name, content)
    staged.rename(placing)
    sync_folder(placing.parent)
    for name in made.files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (placing / name).replace(out / name)
    # A series of an earlier run may have had more slices, and another output a mask.
    for name in (*study.outputs, *study.origin.beside):
        if name not in made.files and (out / name).is_file():
            (out / name).unlink()
        for earlier in (out / name).glob("[0-9]*.dcm"):
            if f"{name}/{earlier.name}" not in made.files:
                earlier.unlink()
    folders = {parent for name in made.files for parent in (out / name).parents if parent.is_relative_to(out)}
    for folder in folders:
        sync_folder(folder)
    (placing / last).replace(out / last)
    sync_folder((out / last).parent)
    shutil.rmtree(placing)
    with suppress(OSError):  # items lie there too
        placing.parent.rmdir()


def _record(
    study: Study, translated: Translated, made: Assembled, why: Sequence[str], doubtful_below: float
) -> tuple[Translation, dict[str, Any]]:
    """What the items have in common, as the record of any translation, and the study's own section."""
    records = [record for record in translated.records if record is not None]
    beside = Path(study.name).parent  # names are relative to the record's folder
    digests = {
        Path(name).relative_to(beside).as_posix(): _digest(content) for name, content in made.files.items()
    }
    written = {name: WrittenFile(file=name, sha256=sha256) for name, sha256 in digests.items()}
    first = next(iter(written))
    main = WrittenFile(file=Path(study.name).name) if "/" in first else written[first]
    kinds = (Part.RETURNED.value, MASK)
    others = {kind: each for kind in kinds for name, each in written.items() if f".{kind}." in name}
    stages = {stage for record in records for stage in record.seconds}
    provenance = translated.first.with_(
        input=study.given.name,
        files={Part.TRANSLATION.value: main, **others},
        input_sha256=study.origin.sha256(),
        latent_sha256="",
        samples=len(records),
        wire_bytes=sum(record.wire_bytes for record in records),
        picture=_figures(records) | dict(made.figures),
    ).model_copy(
        update={
            "seconds": {stage: sum(r.seconds.get(stage, 0.0) for r in records) for stage in sorted(stages)},
            "doubtful": _any([record.doubtful for record in records]),
            "doubts": tuple(sorted({doubt for record in records for doubt in record.doubts or ()})),
        }
    )
    if made.figures:  # parts of one picture: what holds for one of them does not hold for the whole
        provenance = provenance.with_(picture={"structure_doubtful": _most_doubtful(records)}).judged(
            doubtful_below
        )
    report = {
        "format": FORMAT,
        "kind": study.kind,
        "planes": study.planes,
        "options": dict(study.origin.settings),
        "warnings": list(study.warnings),
        **({"series_sha256": study.origin.series_sha256} if study.origin.series_sha256 else {}),
        **made.report,
        "files": digests,
        "items": [
            {"plane": at, **({"refused": True, "why": reason} if record is None else record.stored())}
            for at, record, reason in zip(study.sent, translated.records, why, strict=True)
        ],
    }
    return provenance, report


def _figures(records: Sequence[Translation]) -> dict[str, Any]:
    """Figures of all items: the worst round trip, the medians of structure, the sum of clipped values."""
    pictures = [record.picture for record in records if record.picture is not None]

    def over(name: str, how: Any) -> float | None:
        found = [value for each in pictures if (value := getattr(each, name)) is not None]
        return float(how(found)) if found else None

    return {
        "cycle_psnr": over("cycle_psnr", min),
        "cycle_mse": over("cycle_mse", max),
        "edge_correlation": over("edge_correlation", np.median),
        "mutual_information": over("mutual_information", np.median),
        "structure_doubtful": _any([each.structure_doubtful for each in pictures]),
        "clipped": sum(each.clipped for each in pictures),
        "outside": over("outside", np.mean),
        "used": over("used", np.median),
    }


def _most_doubtful(records: Sequence[Translation]) -> bool | None:
    marks = [r.picture.structure_doubtful for r in records if r.picture is not None]
    known = [mark for mark in marks if mark is not None]
    return sum(known) > len(known) / 2 if known else None


def _any(found: Sequence[bool | None]) -> bool | None:
    known = [each for each in found if each is not None]
    return any(known) if known else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def finished_study(origin: Origin, out: Path, *, asked: str) -> WrittenStudy | None:
    """The output of a study that is on the disk already; None if it is not, or is that of something else."""
    digest = ""
    for path in (out / f"{name}.json" for name in (origin.name, *origin.also)):
        record, report = Translation.read(path), _report(path)
        if record is None or report is None:
            continue
        if (record.asked_sha256, report["options"]) != (asked, dict(origin.settings)):
            continue
        digest = digest or origin.sha256()
        files = {path.parent / name: written for name, written in report["files"].items()}
        if record.input_sha256 != digest or not files:
            continue
        if all(has_sha256(file, written) for file, written in files.items()):
            said = ("was translated by an earlier run; --again translates it again",)
            return WrittenStudy(origin.given, tuple(files), path, record, report, said)
    return None


def _report(path: Path) -> dict[str, Any] | None:
    """The section `study` of a record; None where there is none of this release's."""
    try:
        document = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    report = document.get("study") if isinstance(document, Mapping) else None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        return None
    kinds = {"kind": str, "planes": int, "options": dict, "warnings": list, "files": dict, "items": list}
    if not all(isinstance(report.get(name), kind) for name, kind in kinds.items()):
        return None
    return report if all(isinstance(item, dict) for item in report["items"]) else None

"""Translates a study: its items as files in a folder, and its output of their results.

DIR/NAME.parts/items/0001.png     pixels of plane 1 (.npy of a volume), nothing else: translated like any other file
DIR/NAME.parts/results/0001.png   its translation, with its record 0001.json
DIR/NAME.parts/output/...         files of the output until all are written
DIR/NAME.nii.gz, DIR/NAME.json    the output, its record last; then the parts are removed
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddib_fed.data.study import LATENT, Assembled, ItemResult, Origin, Study, StudyResults, naming
from ddib_fed.errors import AlreadyExists, JobFailed, PictureMisfit, UsageError
from ddib_fed.files import has_sha256, make_private_folders, read_json, sync_folder, write_file, write_json
from ddib_fed.record import Part, PictureFigures, Record, WrittenFile

FORMAT = 1  # version of the section `study` of a record
MASK = "mask"  # of the file that is 0 where nothing was translated: NAME.mask.png, NAME.mask.nii.gz
INTENSITY = "intensity"  # name of the fact of an error that is a rule which fits the model

TranslateFiles = Callable[[Sequence[Path], Path], Mapping[Path, str]]
"""Translates files into a folder, each under its name with its record; why others were refused, and have no result."""


@dataclass(frozen=True, slots=True)
class WrittenStudy:
    given: Path
    files: tuple[Path, ...]
    record: Path
    provenance: Record
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
        """Say which items were refused, and why; empty if none was."""
        left = [item for item in self.report["items"] if item.get("refused")]
        if not left:
            return ""
        why = "; ".join(dict.fromkeys(item["why"] for item in left if item.get("why")))
        planes = _numbers([item["plane"] for item in left])
        said = f"{len(left)} of {self.items} items were refused, and are background ({planes})"
        return f"{said}: {why}" if why else said

    @property
    def shown(self) -> Path:
        return self.files[0] if self.files[0].parent == self.record.parent else self.files[0].parent


def translate_study(
    study: Study, out: Path, translate: TranslateFiles, *, asked: str, force: bool = False
) -> WrittenStudy:
    """Translate the items of a study that have no result yet, and write its output (`finished_study` first).

    `translate` makes files of items in a folder; `asked` is the digest of the request. A misfit's hint names a rule of
    intensity that fits the model. Planes that no node refused are never written as background.
    """
    check_outputs(study.origin, out, force=force)
    parts = out / f"{study.name}.parts"
    items, folder = _write_items(study, parts / "items"), parts / "results"
    results = [None if force else _result(item, folder, asked) for item in items]
    refused: Mapping[Path, str] = {}
    while True:
        if left := [item for item, result in zip(items, results, strict=True) if result is None]:
            with naming(study.origin):
                try:
                    refused = translate(left, folder)
                except PictureMisfit as error:
                    raise _misfit(study, error) from error
            results = [_result(item, folder, asked) for item in items]
        if len(left) == len(items) or len({each.record.made_by for each in results if each}) <= 1:
            break
        shutil.rmtree(folder)  # a model or the calibration was replaced since the first of them
        results = [None] * len(items)
    if missing := [at for at, result in enumerate(results) if result is None]:
        _check_missing(study, items, missing, refused)
    written = write_outputs(study, results, out, [refused.get(item, "") for item in items])
    shutil.rmtree(parts, ignore_errors=True)
    return written


def finished_study(origin: Origin, out: Path, *, asked: str) -> WrittenStudy | None:
    """Return the output of a study that is on the disk already; None if it is incomplete or of another request."""
    path = out / f"{origin.name}.json"
    record, report = Record.read(path), (read_json(path) or {}).get("study")
    if record is None or not isinstance(report, dict) or report.get("format") != FORMAT:
        return None
    if (record.asked_sha256, report["options"]) != (asked, dict(origin.settings)):
        return None
    files = {path.parent / name: written for name, written in report["files"].items()}
    kept = bool(files) and all(has_sha256(file, written) for file, written in files.items())
    if not kept or record.input_sha256 != origin.sha256():
        return None
    said = filter(None, (record.lost, "was translated by an earlier run; --force translates it again"))
    return WrittenStudy(origin.given, tuple(files), path, record, report, tuple(said))


def check_outputs(origin: Origin, out: Path, *, force: bool) -> None:
    given = origin.given.resolve()
    if given.is_dir() and out.resolve() == given:
        raise UsageError(f"the results would lie among the input's files in {out}", hint="another --out")
    record = out / f"{origin.name}.json"
    # By an interrupted run, which has looked before it began; one that wrote its record has ended.
    begun = (out / f"{origin.name}.parts").exists() and not record.exists()
    for path in (*(out / name for name in (*origin.outputs, *origin.beside)), record):
        for each in (path, *path.parents):
            if out in each.parents and each.exists() and each.resolve() in {given, *given.parents}:
                raise UsageError(f"the result would replace the input {each}", hint="another --out")
        if path.exists() and not (force or begun):
            raise AlreadyExists(
                f"{path} is there already, and is no result of this request for {origin.called}",
                hint="choose another --out folder, or add --force",
            )
    study = (read_json(record) or {}).get("study") if origin.series_sha256 and record.exists() else None
    other = study.get("series_sha256") if isinstance(study, dict) else None
    if other not in {None, origin.series_sha256}:
        raise AlreadyExists(
            f"{record} is the record of another series than {origin.called}, which is not overwritten",
            hint="choose another --out folder, or move that result away",
        )


def _write_items(study: Study, folder: Path) -> list[Path]:
    make_private_folders(folder)
    paths = []
    for at, content in zip(study.sent, study.items(), strict=True):
        suffix = ".npy" if content.startswith(b"\x93NUMPY") else ".png"
        path = folder / f"{at + 1:04}{suffix}"
        if not has_sha256(path, _digest(content)):
            write_file(path, content, private=True)
        paths.append(path)
    return paths


def _result(item: Path, results: Path, asked: str) -> ItemResult | None:
    """Return the result on the disk of an item and a request; None unless it is whole and of the same bytes."""
    record = Record.read(results / f"{item.stem}.json")
    if record is None or (record.asked_sha256, record.input_sha256) != (asked, _digest(item.read_bytes())):
        return None
    suffix = ".npy" if record.picture and record.picture.depth else ".png"
    path = results / f"{item.stem}{suffix}"
    written = record.files.get(Part.TRANSLATION)
    if written is None or not has_sha256(path, written.sha256):
        return None
    names = (record.files[part].file if part in record.files else "" for part in (Part.RETURNED, Part.LATENT))
    others = ((results / name).read_bytes() if (results / name).is_file() else None for name in names)
    return ItemResult(path.read_bytes(), record, *others)


def _check_missing(
    study: Study, items: Sequence[Path], missing: Sequence[int], refused: Mapping[Path, str]
) -> None:
    """Raise JobFailed unless the planes without a result were refused, and others were translated."""
    kept = [at for at in missing if items[at] not in refused]
    planes = [study.sent[at] for at in kept or missing]
    what = f"{study.origin.called}: {len(planes)} of {len(items)} planes were not translated ({_numbers(planes)})"
    if kept:
        why = "although no node refused them, so no output was written; the others are kept"
        raise JobFailed(f"{what}, {why}", hop="client", hint="the same command again")
    if len(missing) == len(items):
        reasons = "; ".join(dict.fromkeys(why for why in refused.values() if why))
        why = f"every one was refused ({reasons}), so no output was written"
        hint = "ddib job list, ddib job show JOB: the reason of each"
        raise JobFailed(f"{what}: {why}", hop="client", hint=hint)


def _numbers(planes: Sequence[int]) -> str:
    return ", ".join(str(at + 1) for at in planes[:8]) + (", ..." if len(planes) > 8 else "")


def _misfit(study: Study, error: PictureMisfit) -> PictureMisfit:
    """Return the misfit of an item as one of its study, with a rule of intensity that fits."""
    facts, called = error.facts, study.origin.called
    if facts.get("problem") == "colour":
        detail = f"{called}: it is in colour, and the model takes grey pictures"
        hint = "make a grey copy if that is meant, and translate that"
    else:
        taken = facts.get("range", "0:255")
        rule = f"{'window:40,400' if '(CT)' in study.kind else 'percentile:0.5,99.5'}@{taken}"
        holds, takes = facts.get("holds", "other numbers"), facts.get("takes", taken)
        detail = f"{called}: its slices hold {holds}; the model takes {takes}"
        hint = f"the same command with --intensity={rule} (docs/formats.md)"
        facts = {**facts, INTENSITY: rule}
    return PictureMisfit(detail, hop=error.hop, hint=hint, facts=facts)


def write_outputs(
    study: Study, results: Sequence[ItemResult | None], out: Path, why: Sequence[str] = ()
) -> WrittenStudy:
    """Put results together, and write the output: all its files aside, then into their places, and the record last."""
    with naming(study.origin):
        translated = StudyResults.of(results)
        made = study.assemble(translated)
    latent = f"{study.name}{LATENT}"
    if study.planes == 1 and latent in study.origin.beside and (only := results[0]) and only.latent:
        made = replace(made, files={**made.files, latent: only.latent})
    provenance, report = _record(study, translated, made, why or [""] * len(results))
    path, files = out / f"{study.name}.json", tuple(out / name for name in made.files)
    parts = out / f"{study.name}.parts"
    staged = parts / "output"
    shutil.rmtree(staged, ignore_errors=True)
    for name, content in made.files.items():
        make_private_folders((staged / name).parent)
        write_file(staged / name, content, private=True)
    path.unlink(missing_ok=True)
    for name in made.files:
        make_private_folders((out / name).parent)
        (staged / name).replace(out / name)
    # A series of an earlier run may have had more slices, and another output a mask.
    for name in (*study.origin.outputs, *study.origin.beside):
        for earlier in [out / name, *(out / name).glob("[0-9]*.dcm")]:
            if earlier.is_file() and earlier not in files:
                earlier.unlink()
    for folder in {parent for file in files for parent in file.parents if parent.is_relative_to(out)}:
        sync_folder(folder)
    write_json(path, {**provenance.stored(), "study": report}, private=True)
    shutil.rmtree(staged, ignore_errors=True)
    with suppress(OSError):  # items are kept in it
        parts.rmdir()
    said = filter(None, (provenance.lost, translated.clipped, *made.said))
    return WrittenStudy(study.origin.given, files, path, provenance, report, tuple(said))


def _record(
    study: Study, translated: StudyResults, made: Assembled, why: Sequence[str]
) -> tuple[Record, dict[str, Any]]:
    """Merge the records of the items into one, and write the section `study`."""
    records = [record for record in translated.records if record is not None]
    beside = Path(study.name).parent  # names are relative to the record's folder
    digests = {
        Path(name).relative_to(beside).as_posix(): _digest(content) for name, content in made.files.items()
    }
    written = {name: WrittenFile(file=name, sha256=sha256) for name, sha256 in digests.items()}
    first = next(iter(written))
    main = WrittenFile(file=Path(study.name).name) if "/" in first else written[first]
    others = {
        kind: each
        for kind in (Part.RETURNED.value, Part.LATENT.value, MASK)
        for name, each in written.items()
        if f".{kind}." in name
    }
    figures = _figures(records)
    stages = sorted({stage for record in records for stage in record.seconds})
    sizes = study.pixels.computed(translated).model_dump(include=_SIZES)
    provenance = translated.first.model_copy(
        update={
            "input": study.origin.given.name,
            "files": {Part.TRANSLATION.value: main, **others},
            "input_sha256": study.origin.sha256(),
            "latent_sha256": "",
            "samples": len(records),
            "wire_bytes": sum(record.wire_bytes for record in records),
            "seconds": {stage: sum(r.seconds.get(stage, 0.0) for r in records) for stage in stages},
            "doubtful": _any(record.doubtful for record in records),
            "doubts": tuple(sorted({doubt for record in records for doubt in record.doubts or ()})),
        }
    ).with_(picture=figures | sizes | dict(made.figures))
    if "tiles" in made.report:  # parts of one picture: what holds for one of them does not hold for the whole
        pictures = [record.picture for record in records if record.picture is not None]
        known = [each.structure_doubtful for each in pictures if each.structure_doubtful is not None]
        most = sum(known) > len(known) / 2 if known else None
        if (share := figures["differs"]) is not None and not all(known):  # of all their pixels
            most = share > (pictures[0].most_differs or 0.0)
        provenance = provenance.with_(picture={"structure_doubtful": most}).judged()
    size = provenance.picture or PictureFigures()
    report = {
        "format": FORMAT,
        "kind": study.kind,
        "planes": study.planes,
        "options": dict(study.origin.settings),
        "warnings": list(study.warnings),
        "computed_at": [size.fitted_height or size.height, size.fitted_width or size.width],
        "shrink": size.shrink,
        **({"series_sha256": study.origin.series_sha256} if study.origin.series_sha256 else {}),
        **made.report,
        "files": digests,
        "items": [
            {"plane": at, **({"refused": True, "why": reason} if record is None else record.stored())}
            for at, record, reason in zip(study.sent, translated.records, why, strict=True)
        ],
    }
    return provenance, report


_SIZES = {"depth", "height", "width", "fitted_height", "fitted_width"}
_OVER_ITEMS: Mapping[str, Callable[[Any], Any]] = {
    "cycle_psnr": min,
    "autoencoder_psnr": min,
    "cycle_mse": max,
    "edge_correlation": np.median,
    "differs": np.mean,
    "most_differs": max,
    "outside": np.mean,
    "used": np.median,
}
"""How the figures of all items become one: the worst round trip, the medians of structure."""


def _figures(records: Sequence[Record]) -> dict[str, Any]:
    pictures = [record.picture for record in records if record.picture is not None]
    figures: dict[str, Any] = {
        "clipped": sum(each.clipped for each in pictures),
        "structure_doubtful": _any(each.structure_doubtful for each in pictures),
    }
    for name, how in _OVER_ITEMS.items():
        values = [value for each in pictures if (value := getattr(each, name)) is not None]
        figures[name] = float(how(values)) if values else None
    return figures


def _any(found: Iterable[bool | None]) -> bool | None:
    known = [each for each in found if each is not None]
    return any(known) if known else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

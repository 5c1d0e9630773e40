"""Translates a series, a volume, a map or a picture of a further format: its items are translated like any files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ddib_fed.cli import options
from ddib_fed.cli.delivery import Delivered, WriteOptions
from ddib_fed.cli.folder_report import Document
from ddib_fed.cli.folder_state import LeftOut, Work, left_out, read_files, refused
from ddib_fed.cli.inputs import Chosen, ignored_line
from ddib_fed.client.client import Client
from ddib_fed.client.views import Domains
from ddib_fed.engine.record import MOST_TILES, Part, WrittenFile
from ddib_fed.errors import (
    AlreadyExists,
    Cancelled,
    DdibError,
    ExtraMissing,
    FilesLeftOut,
    InputError,
    JobFailed,
    PictureMisfit,
    UsageError,
)
from ddib_fed.files import read_json, write_file
from ddib_fed.formats.recognition import Format, Recognised, recognise
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.formats.credentials import Credentials
    from ddib_fed.formats.parts import Parts, WrittenStudy
    from ddib_fed.formats.study import Bad, Choice, Origin, Study


POINT = "point"
_LEAVE_OUT = "leave --credentials out; docs/formats.md says which results hold them"


def load_credentials(given: tuple[Path, Path] | None) -> Credentials | None:
    """The certificate and key of the option, before anything is sent."""
    if given is None:
        return None
    from ddib_fed.formats.credentials import Credentials

    return Credentials.load(*given)


def may_be_points(paths: Sequence[Path]) -> bool:
    return all(path.suffix.lower() == ".npy" for path in paths)


def refuse_points(client: Client) -> None:
    if client.domains().sample_kind == POINT:
        raise UsageError("--credentials: points hold no content credentials", hint=_LEAVE_OUT)


def refuse_without_pictures(studies: Sequence[Path]) -> None:
    """Refuse the option for a command whose results are series, volumes, maps and the like alone."""
    raise UsageError(
        f"--credentials: what {studies[0]} becomes holds no content credentials", hint=_LEAVE_OUT
    )


def mark_earlier(each: Delivered, credentials: Credentials | None) -> Delivered:
    """Put credentials into the PNG or JPEG of a result that an earlier run has written, and its digest into
    the record.
    """
    path = each.files[Part.TRANSLATION]
    if credentials is None:
        return each
    from ddib_fed.formats.credentials import MEDIA_TYPES, mark, without_mark

    if path.suffix.lower() not in MEDIA_TYPES:
        return each
    content = path.read_bytes()
    if without_mark(content, path.suffix) == content:
        content = mark(content, path.suffix, each.provenance, credentials)
        write_file(path, content)
    file = WrittenFile(file=path.name, sha256=hashlib.sha256(content).hexdigest())
    if each.provenance.files[Part.TRANSLATION.value] == file:
        return each
    record = each.provenance.with_(files={**each.provenance.files, Part.TRANSLATION.value: file})
    write_file(each.record, record.to_json())
    return replace(each, provenance=record)


LEAST_TILE = 8
"""Pixels of a tile's side."""
INTENSITY = "intensity"
"""Name of the fact of an error that is a rule which fits the model."""
TranslateFiles = Callable[[Sequence[Path], Path], Mapping[Path, str]]
"""Translates files into a folder, each under its name with its record; why others were refused, and have no result."""


def open_studies(
    files: Sequence[Path],
    asked: Mapping[str, Any],
    work: Work,
    out: Path | None = None,
    *,
    bad: Bad | None = None,
    detach: bool = False,
) -> Choice | None:
    """The studies among the files of a command, and the rest, which is translated as it is; None without studies."""
    from ddib_fed.formats.intensity import AUTO, Rule

    found = recognise(files, out)
    if asked["intensity"] != AUTO:
        Rule.parse(asked["intensity"])  # before the node is asked
    of_maps = of_pictures = _tile(asked["tile"])
    auto, source, most = asked["tile"] == "auto", None, None
    pictures = _pictures(found, out) if auto and not detach else []
    earlier = _earlier(out) if out is not None and pictures else {}
    if any(not each.is_picture for each in found.studies) or any(
        path.name not in earlier for path in pictures
    ):
        with work.opened() as client:
            source = client.domains(own_alone=True)
    if auto:
        if source is not None and len(source.sample_shape) == 3:
            of_maps = (source.sample_shape[1], source.sample_shape[2])
            of_pictures = of_maps if source.tiles and not detach else None
        elif source is None:
            of_pictures = next((earlier[path.name] for path in pictures if earlier[path.name]), None)
        most = MOST_TILES
    if of_pictures is not None and found.plain:
        found = recognise(files, out, _larger(of_pictures, most))
    if not found.studies:
        names = ("intensity", "slices", "overlap", "keep_parts")
        options.refuse_idle(names, "is for DICOM, NIfTI, GeoTIFF and pictures in tiles", hint="leave it out")
        return None
    from ddib_fed.formats.opening import open_recognised
    from ddib_fed.formats.study import Options

    slices = "axial" if source is None else _slices(asked["slices"], source)
    intensity = asked["intensity"] if source is None else _intensity(asked["intensity"], source)
    own_rule = "" if source is None else source.intensity
    chosen = Options(intensity, slices, of_maps, asked["overlap"], of_pictures, most, own_rule)
    return open_recognised(found, chosen, bad=bad)


def _intensity(asked: str, source: Domains) -> str:
    """The rule that was asked for; as the source's model says it, where it was trained with the same."""
    from ddib_fed.formats.intensity import AUTO, Rule

    if not source.intensity or asked == AUTO:
        return asked
    rule, own = Rule.parse(asked), Rule.parse(source.intensity)
    if rule == own:
        return source.intensity
    model = f"the model of {source.institution}/{source.domain}"
    if own.name == "hu" and rule.name != "values":
        raise UsageError(
            f"{model} was trained in Hounsfield units, and --intensity {asked} sends other numbers",
            hint="leave --intensity out; --intensity values, if the file's own numbers are Hounsfield units",
        )
    say(f"warning: --intensity {asked}: {model} was trained with {source.intensity}", err=True)
    return asked


def _slices(asked: str, source: Domains) -> str:
    """The plane that was asked for, or the one that the source's model was trained with."""
    from ddib_fed.formats.intensity import AUTO

    if asked == AUTO:
        return source.slices or "axial"
    if source.slices not in {"", asked}:
        model = f"the model of {source.institution}/{source.domain}"
        say(f"warning: --slices {asked}: {model} was trained on {source.slices} slices", err=True)
    return asked


def _pictures(found: Recognised, out: Path | None) -> list[Path]:
    plain = recognise(found.plain, out, _larger((LEAST_TILE, LEAST_TILE), None)).studies
    return [each.path for each in (*found.studies, *plain) if each.format in {Format.PICTURE, Format.LARGER}]


def _earlier(out: Path) -> dict[str, tuple[int, int] | None]:
    """By the name of the file, the tiles in which an earlier run has translated it; None for as a whole."""
    found: dict[str, tuple[int, int] | None] = {}
    for path in out.rglob("*.json") if out.is_dir() else ():
        record = None if path.name.startswith(".") else read_json(path)
        if isinstance(record, dict) and isinstance(record.get("input"), str):
            study = record.get("study")
            tile = study.get("options", {}).get("picture_tile") if isinstance(study, dict) else None
            found[Path(record["input"]).name] = (int(tile[0]), int(tile[1])) if tile else None
    return found


def _larger(tile: tuple[int, int], most: int | None) -> Callable[[Path], bool]:
    """Whether a picture is cut into tiles."""

    def larger(path: Path) -> bool:
        from ddib_fed.formats.pictures import is_larger

        return is_larger(path, tile, most)

    return larger


def translate_study(
    study: Study, translate: TranslateFiles, write: WriteOptions, *, asked: str
) -> WrittenStudy:
    """Translate the items of a study, and write its output; one that is there already is left as it is."""
    from ddib_fed.formats.parts import check_outputs, finished_study, read_results, write_items, write_outputs

    if not write.again:
        earlier = finished_study(study.origin, write.out, asked=asked)
        if earlier is not None:
            return earlier
    check_outputs(study, write.out, force=write.force)
    parts = write_items(study, write.out)
    results = read_results(parts, asked)
    left = [item for item, result in zip(parts.items, results, strict=True) if write.again or result is None]
    refused: Mapping[Path, str] = {}
    if left:
        with _in_the_studys_words(study):
            refused = translate(left, parts.results)
        results = read_results(parts, asked)
    missing = [at for at, result in enumerate(results) if result is None]
    if missing:
        _check_missing(study, parts, missing, refused)
    written = write_outputs(
        study,
        results,
        write.out,
        force=write.force,
        why=[refused.get(item, "") for item in parts.items],
        doubtful_below=write.doubtful_below,
    )
    if not write.keep_parts:
        parts.remove()
    return written


def _check_missing(study: Study, parts: Parts, missing: Sequence[int], refused: Mapping[Path, str]) -> None:
    """Return if the planes without a result may be written as background: all were refused, but not all planes."""
    kept = [at for at in missing if parts.items[at] not in refused]
    planes = [study.sent[at] + 1 for at in kept or missing]
    some = ", ".join(map(str, planes[:8])) + (", ..." if len(planes) > 8 else "")
    what = f"{study.origin.called}: {len(planes)} of {len(parts.items)} planes were not translated ({some})"
    if kept:
        raise JobFailed(
            f"{what}, although no node refused them, so no {study.kind} was written; the others are in {parts.results}",
            hop="client",
            hint="the same command again",
        )
    if len(missing) == len(parts.items):
        reasons = "; ".join(dict.fromkeys(why for why in refused.values() if why))
        raise JobFailed(
            f"{what}: every one was refused ({reasons}), so no {study.kind} was written",
            hop="client",
            hint="ddib job list, ddib job show JOB: the reason of each",
        )


def report_study(each: WrittenStudy) -> None:
    """Print what was written."""
    say(f"{each.given}: {each.kind}, {each.items} items -> {each.shown}")
    picture, round_trip = each.provenance.picture, ""
    if "tiles" in each.report and picture is not None and picture.cycle_psnr is not None:
        mark = ", doubtful" if "cycle_psnr" in (each.provenance.doubts or ()) else ""
        size = f"{picture.width}x{picture.height}"
        round_trip = f"round trip {picture.cycle_psnr:.1f} dB at its own {size} pixels{mark}"
    for line in (each.refused, round_trip, *each.said):
        if line:
            say(f"  {line}")
    if doubtful := sum(bool(item.get("doubtful")) for item in each.report["items"]):
        say(f"  {doubtful} of {each.items} items doubtful ({each.record})", err=True)


def as_json(each: WrittenStudy) -> dict[str, object]:
    """What a JSON document says of a study."""
    return {
        "input": each.given,
        "kind": each.kind,
        "files": list(each.files),
        "provenance": each.record,
        "planes": each.report["planes"],
        "items": each.items,
        "refused": each.refused,
        "picture": each.provenance.picture,
        "flicker": each.report.get("flicker"),
        "seams": each.report.get("seams"),
        "doubtful": each.provenance.doubtful,
        "warnings": each.report["warnings"],
    }


@contextmanager
def _in_the_studys_words(study: Study) -> Iterator[None]:
    """Inside, an error about the items is one about the study; of those that do not fit the model, with what would."""
    called = study.origin.called
    try:
        yield
    except JobFailed as error:
        error.detail = f"{called}: {error.detail}"
        error.args = (error.detail,)
        raise
    except PictureMisfit as error:
        if error.facts.get("problem") == "colour":
            from ddib_fed.formats.study import grey_copy

            raise PictureMisfit(
                f"{called}: it is in colour, and the model takes grey pictures",
                hop=error.hop,
                hint=f"make a grey copy if that is meant, and translate that: {grey_copy(study)}",
                facts=error.facts,
            ) from error
        taken = error.facts.get("range", "0:255")
        rule = f"{'window:40,400' if '(CT)' in study.kind else 'percentile:0.5,99.5'}@{taken}"
        raise PictureMisfit(
            f"{called}: its slices hold {error.facts.get('holds', 'other numbers')}; the model takes "
            f"{error.facts.get('takes', taken)}",
            hop=error.hop,
            hint=f"the same command with --intensity={rule} (docs/formats.md)",
            facts={**error.facts, INTENSITY: rule},
        ) from error


def _tile(text: str) -> tuple[int, int] | None:
    if text in {"auto", "none"}:
        return None
    if not text.isdecimal() or not LEAST_TILE <= int(text) <= 65536:
        raise UsageError(f"--tile {text!r} is no size", hint="--tile 256, --tile auto or --tile none")
    return int(text), int(text)


Seen = TypeVar("Seen")
"""What is kept of a study that was looked at."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The studies of a command, before anything is sent."""

    choice: Choice
    work: Work
    earlier: Mapping[int, WrittenStudy]
    bad: tuple[tuple[Path, DdibError], ...]
    unreadable: frozenset[int]

    @property
    def file_names(self) -> tuple[str, ...]:
        origins = self.choice.studies.origins
        return tuple(name for each in origins for name in (*each.outputs, *each.beside, f"{each.name}.json"))

    @property
    def inputs(self) -> tuple[Path, ...]:
        return tuple(path for origin in self.choice.studies.origins for path in origin.inputs)

    @property
    def others(self) -> int:
        return len(self.bad) - len(self.unreadable)


def plan_studies(
    files: Sequence[Path],
    asked: Mapping[str, Any],
    work: Work,
    *,
    detach: bool = False,
) -> Plan | None:
    """The studies among some files and below folders, each read once to know that it can be; None without any."""
    bad: Bad = []
    choice = open_studies(files, asked, work, work.write.out, bad=bad, detach=detach)
    if choice is None:
        return None
    if detach:
        raise UsageError(
            f"--detach: {choice.studies.origins[0].given} is put together when its items are there",
            hint="leave --detach out; after an interruption the same command resumes",
        )
    bad += [(folder, _beside(folder, found)) for folder, found in choice.beside]
    if line := ignored_line(choice.ignored):
        say(line, err=True)
    plan = Plan(choice, work, {}, (), frozenset())
    origins = choice.studies.origins
    found, unreadable = look_at_each(origins, partial(_look, plan))
    bad += [(origins[at].given, error) for at, error in unreadable.items()]
    earlier = {at: done for at, done in found.items() if done is not None}
    return replace(plan, earlier=earlier, bad=tuple(bad), unreadable=frozenset(unreadable))


def look_at_each(
    origins: Sequence[Origin], look: Callable[[int, Origin], Seen]
) -> tuple[dict[int, Seen], dict[int, DdibError]]:
    """What is seen of each study before anything is sent, by number; and why others cannot be read, likewise."""
    seen: dict[int, Seen] = {}
    unreadable: dict[int, DdibError] = {}
    for at, origin in enumerate(origins):
        try:
            seen[at] = look(at, origin)
        except (UsageError, AlreadyExists, Cancelled):
            raise
        except DdibError as error:
            unreadable[at] = error.kept()
        except OSError as error:
            why = f"{origin.given} cannot be read: {error.strerror or error}"
            unreadable[at] = InputError(why, hop="client")
    return seen, unreadable


def _look(plan: Plan, at: int, origin: Origin) -> WrittenStudy | None:
    """The output of a study of an earlier run; otherwise the study is read, and its warnings are said."""
    from ddib_fed.formats.parts import check_outputs, finished_study

    write = plan.work.write
    if not write.again:
        done = finished_study(origin, write.out, asked=plan.work.digest)
        if done is not None:
            return done
    check_outputs(origin, write.out, force=write.force)
    for warning in plan.choice.studies[at].warnings:
        say(f"warning: {warning}", err=True)
    return None


def _beside(folder: Path, found: Mapping[str, int]) -> InputError:
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in found.items())
    return InputError(
        f"{folder}: files that are translated one by one ({kinds}) lie among DICOM files, and are not taken for slices",
        hop="client",
        hint="move them into a folder of their own, or name them in a command of their own",
    )


def check_plan(plan: Plan, chosen: Chosen | None) -> None:
    """Return if every study and every plain file can be translated, or bad ones are left out."""
    bad, skip_bad = list(plan.bad), plan.work.write.skip_bad
    if not skip_bad:
        for error in (error for _, error in bad if isinstance(error, ExtraMissing)):
            raise error  # one command repairs it for all files
    total = len(plan.choice.studies) + plan.others
    if chosen is not None:
        total += len(chosen.paths)
        if not skip_bad:
            bad += read_files(chosen, plan.work)[1]
    if bad and not (skip_bad and len(bad) < total):
        raise refused(bad, total, "nothing was submitted")


class Ending:
    """What a command ends with that goes on after an error of one of its parts."""

    def __init__(self, errors: Sequence[DdibError] = ()) -> None:
        self._errors = list(errors)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, an error about single files or items waits until `conclude`."""
        try:
            yield
        except (JobFailed, FilesLeftOut) as error:
            self._errors.append(error.kept())

    def conclude(self) -> None:
        """Return if all went well."""
        if len(self._errors) > 1:
            failed = any(isinstance(error, JobFailed) for error in self._errors)
            hints = dict.fromkeys(error.hint for error in self._errors if error.hint)
            raise (JobFailed if failed else FilesLeftOut)(
                "\n".join(error.detail for error in self._errors),
                hint="\n".join(hints),
                hop=self._errors[0].hop,
            )
        for error in self._errors:
            raise error


def translate_studies(
    plan: Plan, translate: TranslateFiles, document: Document, done: list[WrittenStudy]
) -> None:
    """Translate all studies, one after the other, and print what was written as soon as it is."""
    documents: list[dict[str, object]] = []
    failed: list[DdibError] = []
    missing = [LeftOut.of(path, error) for path, error in plan.bad]
    for at, origin in enumerate(plan.choice.studies.origins):
        if at in plan.unreadable:
            continue
        try:
            written = _translated(plan, at, translate)
        except (JobFailed, InputError) as error:
            if isinstance(error, UsageError) or not (
                plan.work.write.skip_bad or isinstance(error, JobFailed)
            ):
                raise
            missing.append(LeftOut.of(origin.given, error))
            failed.append(error.kept())
            continue
        done.append(written)
        documents.append(as_json(written))
        if not document.is_wanted:
            report_study(written)
    document.add({"studies": documents, "left_out": [each.as_json() for each in missing]})
    if missing and plan.work.write.skip_bad:
        total = len(plan.choice.studies) + plan.others
        raise left_out(missing, total, f"the others are in {plan.work.write.out}")
    partly = [f"{each.given}: {each.refused}" for each in done if each.refused]
    if partly:
        hint = "the records name each item; what was refused is not in the results"
        failed.append(FilesLeftOut("\n".join(partly), hint=hint))
    Ending(failed).conclude()


def _translated(plan: Plan, at: int, translate: TranslateFiles) -> WrittenStudy:
    if at in plan.earlier:
        return plan.earlier[at]
    study = plan.choice.studies[at]
    return translate_study(study, translate, plan.work.write, asked=plan.work.digest)

"""`ddib translate` of series, volumes, maps and further picture formats: their items are translated like any files."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed.cli import options
from ddib_fed.cli.client.translation.display import TERMINAL, Display
from ddib_fed.cli.output import print_json
from ddib_fed.client.profile import Profile
from ddib_fed.errors import JobFailed, PictureMisfit, UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.formats.parts import WrittenStudy
    from ddib_fed.formats.study import Choice, Study

INTENSITY = "intensity"
"""Name of the fact of an error that is a rule which fits the model."""
TranslateFiles = Callable[[Sequence[Path], Path], object]
"""Translates files into a folder, each under its name with its record; what is refused has no result there."""


@dataclass(frozen=True, slots=True)
class StudyManner:
    """How a command writes.

    Attributes:
        out: Folder of the results.
        output_format: ``text`` or ``json``.
        force: Whether earlier output is overwritten.
        detach: Whether the command only submits.
        keep_parts: Whether items and their results stay.
    """

    out: Path
    output_format: str
    force: bool = False
    detach: bool = False
    keep_parts: bool = False


def translate_studies(
    files: Sequence[Path],
    profile: Profile,
    asked: Mapping[str, Any],
    translate: TranslateFiles,
    manner: StudyManner,
) -> tuple[Path, ...]:
    """Translate the series, volumes, maps and pictures of further formats among some files; the files that are left.

    Raises:
        DdibError: As of `open_studies`, `refuse_mixed` and `translate_study`.
    """
    given = open_studies(files, asked, profile)
    if given is None:
        return tuple(files)
    for study in given.studies:
        for warning in study.warnings:
            say(f"warning: {warning}", err=True)
    refuse_mixed(manner.output_format, given, detach=manner.detach)
    kept = replace(manner, keep_parts=manner.keep_parts or asked["keep_parts"])
    fill = bool(asked["fill_refused"])
    written = [translate_study(study, translate, kept, fill_refused=fill) for study in given.studies]
    report_studies(written, manner.output_format)
    return given.plain


def open_studies(
    files: Sequence[Path], asked: Mapping[str, Any], profile: Profile, *, display: Display = TERMINAL
) -> Choice | None:
    """The studies among the files of a command, and the rest, which is translated as it is; None without studies.

    Args:
        files: As given.
        asked: Options of the command: `options.STUDIES`.
        profile: Of the node whose model's size is the size of a map's tiles.
        display: Shows that the node is asked.

    Raises:
        DdibError: A file cannot be read, a package for its format is missing, or options contradict each other.
    """
    from ddib_fed.formats.recognition import is_georeferenced, is_study

    if not any(is_study(path) for path in files):
        names = ("intensity", "slices", "tile", "overlap", "fill_refused", "keep_parts")
        options.refuse_idle(names, "is for DICOM, NIfTI, GeoTIFF and the like", hint="leave it out")
        return None
    from ddib_fed.formats.opening import open_paths
    from ddib_fed.formats.study import Options

    chosen = Options(
        asked["intensity"], asked["slices"], _tile(asked["tile"]), asked["overlap"], asked["fill_refused"]
    )
    if asked["tile"] == "auto" and any(is_georeferenced(path) for path in files):
        with display.opened(profile) as (client, _):
            shape = client.domains().sample_shape
        chosen = replace(chosen, tile=(shape[1], shape[2]) if len(shape) == 3 else None)
    return open_paths(files, chosen)


def translate_study(
    study: Study, translate: TranslateFiles, manner: StudyManner, *, fill_refused: bool
) -> WrittenStudy:
    """Translate the items of a study, and write its output.

    Results of an earlier run that are complete are put together without asking the node.

    Args:
        study: The study.
        translate: Translates the items.
        manner: Where to write, and what stays.
        fill_refused: Whether refused planes become background.

    Raises:
        PictureMisfit: The items are not in the units of the source's model; the hint is a rule that fits.
        JobFailed: Planes were refused, and `fill_refused` is not set.
        DdibError: As of `translate` and `formats.parts`.
    """
    from ddib_fed.formats.parts import check_outputs, read_results, write_items, write_outputs

    check_outputs(study, manner.out, force=manner.force)
    parts = write_items(study, manner.out)
    results = read_results(parts)
    left = [item for item, result in zip(parts.items, results, strict=True) if manner.force or result is None]
    if left:
        with _in_the_studys_words(study):
            translate(left, parts.results)
        results = read_results(parts)
    refused = [at + 1 for at, result in zip(study.sent, results, strict=True) if result is None]
    if refused and not fill_refused:
        some = ", ".join(map(str, refused[:8])) + (", ..." if len(refused) > 8 else "")
        raise JobFailed(
            f"{study.given}: {len(refused)} of {len(results)} planes were not translated ({some}), so no "
            f"{study.kind} was written; the others are in {parts.results}",
            hop="client",
            hint="ddib job list, ddib job show JOB; --fill-refused writes them as background",
        )
    written = write_outputs(study, results, manner.out, force=manner.force)
    if not manner.keep_parts:
        parts.remove()
    return written


def report_studies(written: Sequence[WrittenStudy], output_format: str) -> None:
    """Print what was written: lines, or one JSON document."""
    if output_format == "json":
        print_json({"studies": [_as_json(each) for each in written]})
        return
    for each in written:
        first = each.files[0] if len(each.files) == 1 else each.files[0].parent
        say(f"{each.study.given}: {each.study.kind}, {len(each.study.sent)} items -> {first}")
        for line in each.said:
            say(f"  {line}")
        doubtful = sum(bool(item.get("doubtful")) for item in each.report["items"])
        if doubtful:
            say(f"  {doubtful} of {len(each.study.sent)} items doubtful ({each.record})", err=True)


def refuse_mixed(output_format: str, given: Choice, *, detach: bool) -> None:
    """Return if the options go with studies.

    Raises:
        UsageError: --detach, or --format json with other files beside them.
    """
    if detach:
        raise UsageError(
            f"--detach: {given.studies[0].given} is put together when its items are there",
            hint="leave --detach out; the same command goes on where it was interrupted",
        )
    if output_format == "json" and given.plain:
        raise UsageError(
            f"{given.studies[0].given} and {given.plain[0]} would be two JSON documents",
            hint="translate them by two commands",
        )


def _as_json(each: WrittenStudy) -> dict[str, object]:
    return {
        "input": each.study.given,
        "kind": each.study.kind,
        "files": list(each.files),
        "provenance": each.record,
        "planes": each.study.planes,
        "items": len(each.study.sent),
        "flicker": each.report.get("flicker"),
        "seams": each.report.get("seams"),
        "doubtful": each.provenance.doubtful,
        "warnings": list(each.study.warnings),
    }


@contextmanager
def _in_the_studys_words(study: Study) -> Iterator[None]:
    """Inside, an item that does not fit the model is an error about the study, with the rule that would fit."""
    try:
        yield
    except PictureMisfit as error:
        taken = error.facts.get("range", "0:255")
        rule = f"{'window:40,400' if 'CT' in study.kind else 'percentile:0.5,99.5'}@{taken}"
        raise PictureMisfit(
            f"{study.given}: its slices hold {error.facts.get('holds', 'other numbers')}; the model takes "
            f"{error.facts.get('takes', taken)}",
            hop=error.hop,
            hint=f"ddib translate {shlex.quote(str(study.given))} ... --intensity {rule} (docs/formats.md)",
            facts={**error.facts, INTENSITY: rule},
        ) from error


def _tile(text: str) -> tuple[int, int] | None:
    """(height, width) of the option --tile: a number; None for ``auto`` and ``none``.

    Raises:
        UsageError: It is none of these.
    """
    if text in {"auto", "none"}:
        return None
    if not text.isdecimal() or not 8 <= int(text) <= 65536:
        raise UsageError(f"--tile {text!r} is no size", hint="--tile 256, --tile auto or --tile none")
    return int(text), int(text)

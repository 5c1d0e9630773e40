"""A DICOM series as a study: its slices are the items, a derived series is the output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ddib_fed.errors import DdibError, ImageUnreadable, InputError
from ddib_fed.formats.dicom.derived import derived_series
from ddib_fed.formats.dicom.finding import SeriesName, names_of, sort_files
from ddib_fed.formats.dicom.series import Series, read_series, readable
from ddib_fed.formats.intensity import PERCENTILES, Rule, chosen_rule
from ddib_fed.formats.origin import Origin
from ddib_fed.formats.slices import Slices
from ddib_fed.formats.study import Assembled, FromOrigin, Options, Translated, Unread


@dataclass(frozen=True, slots=True)
class DicomStudy(FromOrigin):
    """A series."""

    series: Series
    slices: Slices

    @property
    def kind(self) -> str:
        units = " without Hounsfield units" if self.series.without_units else ""
        return f"DICOM series ({self.series.modality or 'no modality'}{units})"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Burnt-in text, missing slices, a CT whose numbers are in no units."""
        odd = self.series.without_units
        said = [f"{self.origin.called}: these are no Hounsfield units: {odd[0]}"] if odd else []
        return (*self.series.warnings, *said)

    @property
    def rule(self) -> str:
        return self.slices.rule

    @property
    def sent(self) -> tuple[int, ...]:
        return self.slices.sent

    @property
    def planes(self) -> int:
        return len(self.slices.numbers)

    def items(self) -> Iterator[bytes]:
        return self.slices.items()

    def assemble(self, translated: Translated) -> Assembled:
        """The files of the derived series."""
        stack = self.slices.stack(translated)
        report, said = self.slices.report(translated, stack)
        contents = derived_series(self.series, stack, translated, range(self.planes))
        files = {f"{self.name}/{at + 1:04}.dcm": content for at, content in enumerate(contents)}
        report["geometry"] = self._geometry()
        report["marks"] = {
            "synthetic_data": "YES",
            "image_type": "DERIVED\\SECONDARY",
            "burnt_in_annotation": str(self.series.headers[0].get("BurnedInAnnotation", "")) or None,
        }
        return Assembled(files, report, said)

    def _geometry(self) -> dict[str, Any]:
        header = self.series.headers[0]
        spacing = header.get("PixelSpacing")
        return {
            "modality": self.series.modality,
            "rows": int(header.Rows),
            "columns": int(header.Columns),
            "pixel_spacing_mm": [float(v) for v in spacing] if spacing else None,
        }


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """The series among some files."""

    unread: tuple[Unread, ...]
    unreadable: tuple[tuple[Path, DdibError], ...]
    others: Counter[str]


def find_dicom(given: Path, files: Iterable[Path], root: Path | None, options: Options) -> FoundSeries:
    """The series among some files."""
    found = sort_files(files)
    if not found.series and not found.unreadable:
        raise ImageUnreadable(f"{given} holds no DICOM pictures", hop="client", hint="ls, or dcmdump FILE")
    several = len(found.series) > 1
    unread: list[Unread] = []
    unreadable = [*found.unreadable]
    for called, members in names_of(found.series, root):
        good, bad = readable(members)
        unread.append(_unread(given, called, good, options, several=several))
        unreadable += bad
    return FoundSeries(tuple(unread), tuple(unreadable), found.others)


def _unread(
    given: Path, called: SeriesName, members: Sequence[tuple[Path, Any]], options: Options, *, several: bool
) -> Unread:
    """A series; its folder of results has its name."""
    origin = Origin(
        given,
        called.name,
        (called.name,),
        tuple(path for path, _ in members),
        options.settings("intensity"),
        label=f"{given}: {called.name}" if several else "",
        also=called.also,
        series_sha256=called.uid_sha256,
    )
    return Unread(origin, partial(read_dicom, origin, members, options))


def read_dicom(origin: Origin, members: Sequence[tuple[Path, Any]], options: Options) -> DicomStudy:
    """The series of some files."""
    series, values = read_series(origin.called, members)
    try:
        rule = chosen_rule(options.intensity, values, series.modality, of_model=options.of_model)
        _require_units(origin.called, series, rule)
        slices = Slices.of(values, rule)
    except ImageUnreadable as error:
        raise ImageUnreadable(f"{origin.called}: {error.detail}", hop="client", hint=error.hint) from error
    return DicomStudy(origin, series, slices)


def _require_units(called: str, series: Series, rule: Rule) -> None:
    """Return if the values of a CT have one unit, and the one that the rule names."""
    odd = series.without_units
    if odd and (rule.name == "hu" or len(odd) < len(series.paths)):
        raise InputError(
            f"{called}: {len(odd)} of {len(series.paths)} slices are in no Hounsfield units: {odd[0]}",
            hop="client",
            hint=f"export it again with its rescale, or send numbers without units: --intensity {PERCENTILES}",
        )

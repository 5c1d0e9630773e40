"""One page and one contact sheet of what a command translated: verdict, pictures, provenance, glossary.

The page holds reduced pictures, so that it stays one file that opens with 1,500 of them; the files beside are linked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ddib_fed.bridge.records.translation_record import PictureFigures, Translation, fitted_line
from ddib_fed.reports import html
from ddib_fed.reports.html import Cell, Html
from ddib_fed.reports.page_script import SORT_AND_ENLARGE
from ddib_fed.reports.previews import Preview, encoded, preview, squared
from ddib_fed.reports.sheets import CELL, Stage, save_sheet

MANY = 200
"""Pictures from which previews are smaller."""
SIDE, SIDE_OF_MANY = 384, 192
SHOWN = 96
MOST_ON_SHEET = 48
COLUMNS: Final[Mapping[str, str]] = {
    "cycle_psnr": "round trip dB",
    "edge_correlation": "edge correlation",
    "mutual_information": "mutual information",
}
_DOUBTS: Final = {"cycle_psnr": "round trip"}
GLOSSARY: Final[Mapping[str, str]] = {
    "Translation": "The picture of the other institution's domain that keeps the structure of the source: the source's "
    "model encodes it to a latent, the target's model decodes the latent.",
    "Latent": "What crosses between the institutions. It can be turned back into the picture by whoever has the model: "
    "treat it like the picture.",
    "Round trip": "The translation is translated back and compared with the source, as peak signal-to-noise ratio in "
    "dB: more is better. It shows whether the path can be reversed, not whether the translation is right.",
    "Edge correlation": "Agreement of the edges of source and translation, from -1 to 1.",
    "Mutual information": "How much the values of the source tell about the translation's, in bits; 0 is nothing.",
    "Doubtful": "The round trip is below the bound, or the structure is no better than that of unrelated pictures. A "
    "doubtful translation must be looked at; one that is not marked can still be wrong.",
    "Contract": "What both nodes agreed on beforehand: models, shapes, limits. Its digest is in each record.",
    "Calibration": "A correspondence of colours or values that both operators signed for this pair of domains.",
    "Evaluations": "How often each model's network was evaluated on its leg.",
}


Drawn = dict[str, Preview | None]
"""Pictures of one file, each under its kind: source, translated, returned."""


@dataclass(frozen=True, slots=True)
class ShownFile:
    """One translated picture."""

    name: str
    record: Translation
    translated: Path
    source: Path | None = None
    returned: Path | None = None

    @property
    def figures(self) -> PictureFigures:
        return self.record.picture or PictureFigures()

    def doubt(self) -> tuple[bool, float, float, str]:
        """For sorting: doubtful ones first, then the worst figures."""
        figures = self.figures
        values = [figures.cycle_psnr, figures.edge_correlation]
        least = [float("inf") if value is None else value for value in values]
        return (not self.record.doubtful, least[0], least[1], self.name)

    def stages(self, side: int) -> Drawn:
        """Its pictures, each with the longer side at most `side` pixels."""
        figures = self.figures
        drawn: Drawn = {}
        if self.source is not None:
            drawn["source"] = preview(self.source, side, span=figures.source_range)
        drawn["translated"] = preview(
            self.translated, side, span=figures.target_range, scale=figures.output_scale
        )
        if self.returned is not None:
            back = figures.back_scale
            span = figures.source_range if back is not None else None
            drawn["returned"] = preview(self.returned, side, span=span, scale=back or (1.0, 0.0))
        return drawn


@dataclass(frozen=True, slots=True)
class Results:
    """What a command translated."""

    target: str
    total: int
    files: Sequence[ShownFile]
    missing: Sequence[tuple[str, str]] = ()


def write_results(
    page: Path,
    sheet: Path,
    results: Results,
    *,
    on_drawn: Callable[[int, int], None] | None = None,
) -> None:
    """Write the page and the sheet; each appears completely or not at all."""
    files = sorted(results.files, key=ShownFile.doubt)
    side = SIDE if len(files) <= MANY else SIDE_OF_MANY
    kinds = [
        kind
        for kind in ("source", "translated", "returned")
        if kind == "translated" or any(getattr(each, kind) is not None for each in files)
    ]
    chosen = set(np.linspace(0, len(files) - 1, min(MOST_ON_SHEET, len(files))).astype(int).tolist())
    on_sheet: list[tuple[ShownFile, Drawn]] = []
    rows: list[list[Cell]] = []
    columns = [key for key in COLUMNS if any(getattr(each.figures, key) is not None for each in files)]
    for number, each in enumerate(files):
        drawn = each.stages(side)
        if number in chosen:
            on_sheet.append((each, drawn))
        rows.append(_row(each, drawn, kinds, columns, page.parent))
        if on_drawn is not None:
            on_drawn(number + 1, len(files))
    _write_sheet(sheet, sorted(on_sheet, key=lambda found: found[0].name), kinds, results)
    heads = ["file", "mark", "pixels", *kinds, *(COLUMNS[key] for key in columns)]
    html.write_page(
        page,
        f"Translations to {results.target}",
        _parts(results, heads, rows, sheet),
        script=SORT_AND_ENLARGE,
    )


def _parts(results: Results, heads: Sequence[str], rows: Sequence[Sequence[Cell]], sheet: Path) -> list[Html]:
    parts = [html.verdict(verdict(results)), *map(html.paragraph, _remarks(results))]
    if results.missing:
        parts += [html.heading("Not translated"), html.text_table(("file", "why"), results.missing)]
    return [
        *parts,
        html.heading("Pictures"),
        html.paragraph(
            "The doubtful and the worst first; a click on a column's name sorts, a click on a picture enlarges its row "
            "(arrow keys for the next, Esc closes). Pictures here are reduced; the files are linked. "
            f"A sheet: {sheet.name}"
        ),
        html.sortable(heads, rows),
        html.heading("Provenance"),
        html.text_table(("", ""), provenance([each.record for each in results.files])),
        html.heading("Glossary"),
        html.terms(GLOSSARY),
    ]


def verdict(results: Results) -> str:
    """How many are translated, doubtful and left out; before that, which were not translated at their own size."""
    done, doubtful = len(results.files), sum(bool(each.record.doubtful) for each in results.files)
    said = f"{done:,} of {results.total:,} files are translated"
    if any(each.record.doubtful is not None for each in results.files):
        said += f"; doubtful: {doubtful:,}" if doubtful else "; none is marked doubtful"
    said += f"; left out or failed: {len(results.missing):,}." if results.missing else "."
    fitted = fitted_line([(each.name, each.record) for each in results.files])
    return f"{fitted}. {said}" if fitted else said


def _remarks(results: Results) -> list[str]:
    values = [p for each in results.files if (p := each.figures.cycle_psnr) is not None]
    said = []
    if values:
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        said.append(f"Round trip: median {middle:.1f} dB, nine in ten between {low:.1f} and {high:.1f} dB.")
    elif all(each.record.doubtful is None for each in results.files):
        said.append(
            "Nothing was measured that could mark a picture as doubtful: translate with --cycle to have it."
        )
    clipped = sum(bool(each.figures.clipped) for each in results.files)
    if clipped:
        said.append(
            f"{clipped:,} pictures have values outside the range of the source's model; these were clipped."
        )
    return [*said, "These pictures are made by machine. The figures here say nothing about findings in them."]


def provenance(records: Sequence[Translation]) -> list[tuple[str, str]]:
    """Each fact with its value, or with its values and how many pictures have each."""
    facts: Mapping[str, Callable[[Translation], str]] = {
        "source": lambda r: f"{r.source_institution}/{r.source_domain}".lstrip("/"),
        "target": lambda r: f"{r.target_institution}/{r.target_domain}".lstrip("/"),
        "jobs": lambda r: r.job_id,
        "solver": lambda r: (
            f"{r.solver.solver}, {r.solver.evaluations} evaluations a leg, grid {r.solver.grid}, "
            f"depth {r.solver.depth:g}, encoder {r.solver.encoder}"
        ),
        "softening": lambda r: f"noise level {r.soften_sigma:g}",
        "class": lambda r: (
            f"{r.source_class} to {r.target_class}" if r.source_class or r.target_class else ""
        ),
        "guidance": lambda r: "" if r.guidance is None else str(r.guidance),
        "latents crossed in": lambda r: r.latent_type or "float32",
        "calibration": lambda r: f"{r.calibration_kind} {r.calibration_sha256}".strip(),
        "contract": lambda r: r.contract_sha256,
        "source's model": lambda r: r.source_model_sha256,
        "target's model": lambda r: r.target_model_sha256,
        "source's policy": lambda r: r.policy_sha256,
    }
    rows = []
    for name, fact in facts.items():
        found = Counter(value for record in records if (value := fact(record)))
        several = len(found) > 1
        values = [f"{value} ({count:,})" if several else value for value, count in found.items()]
        if values:
            rows.append((name, ", ".join(values)))
    return rows


def _row(
    each: ShownFile,
    drawn: Mapping[str, Preview | None],
    kinds: Sequence[str],
    columns: Sequence[str],
    folder: Path,
) -> list[Cell]:
    doubts = ", ".join(_DOUBTS.get(doubt, doubt) for doubt in each.record.doubts or ())
    mark: Cell = html.doubt(f"doubtful: {doubts}") if each.record.doubtful else ""
    shown: list[Cell] = []
    for kind in kinds:
        pixels = drawn.get(kind)
        if pixels is None:
            shown.append(None)
            continue
        width = max(1, round(SHOWN * pixels.shape[1] / max(pixels.shape[:2])))
        shown.append(html.picture(encoded(pixels), text=f"{each.name}, {kind}", width=width, zoom=True))
    name = html.link(each.translated.relative_to(folder).as_posix(), each.name)
    at = f" at {each.figures.fitted_width}x{each.figures.fitted_height}" if each.figures.lost else ""
    size = f"{each.figures.width}x{each.figures.height}{at}"
    return [name, mark, size, *shown, *(getattr(each.figures, key) for key in columns)]


def _write_sheet(
    path: Path,
    chosen: Sequence[tuple[ShownFile, Drawn]],
    kinds: Sequence[str],
    results: Results,
) -> None:
    """These files with their pictures, in this order."""
    stages = [
        Stage(kind, np.stack([squared(drawn.get(kind), CELL) for _, drawn in chosen])) for kind in kinds
    ]
    total = len(results.files)
    some = (
        ""
        if len(chosen) == total
        else f" {len(chosen)} of {total:,} are shown, spread evenly from worst to best."
    )
    save_sheet(
        path,
        stages,
        names=[Path(each.name).name for each, _ in chosen],
        doubtful=[bool(each.record.doubtful) for each, _ in chosen],
        caption=f"To {results.target}. {verdict(results)}{some}",
    )

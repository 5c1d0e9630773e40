"""The page and the contact sheet of what a command translated: verdict, pictures, provenance, glossary.

The page holds reduced pictures, so that it stays one file that opens with 1,500 of them; the files beside are linked.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.decoding import ImageLimits
from ddib_fed.data.fitting import PictureRule, to_array
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.engine.record import PictureFigures, Translation, fitted_line
from ddib_fed.errors import DdibError, UsageError
from ddib_fed.evaluation.sheets import CELL, Stage, save_sheet, to_pixels
from ddib_fed.evaluation.translations import Scale
from ddib_fed.pages import beside, write_page

if TYPE_CHECKING:
    from ddib_fed.evaluation.metrics import Pictures

MOST_BYTES = 1 << 30
JPEG_FROM = 64
"""Pixels of the longer side from which a preview is a JPEG: as a PNG it would have three times the bytes."""
Preview = NDArray[np.uint8]
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

Drawn = dict[str, Preview | None]
"""Pictures of one file, each under its kind: source, translated, returned."""


@dataclass(frozen=True, slots=True)
class ShownFile:
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
    target: str
    total: int
    files: Sequence[ShownFile]
    missing: Sequence[tuple[str, str]] = ()


def write_results(
    page: Path, sheet: Path, results: Results, *, on_drawn: Callable[[int, int], None] | None = None
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
    rows = []
    keys = [key for key in COLUMNS if any(getattr(each.figures, key) is not None for each in files)]
    for number, each in enumerate(files):
        drawn = each.stages(side)
        if number in chosen:
            on_sheet.append((each, drawn))
        rows.append(_row(each, drawn, kinds, keys, page.parent))
        if on_drawn is not None:
            on_drawn(number + 1, len(files))
    _write_sheet(sheet, sorted(on_sheet, key=lambda found: found[0].name), kinds, results)
    write_page(
        page,
        "results.html",
        title=f"Translations to {results.target}",
        verdict=verdict(results),
        remarks=_remarks(results),
        missing=results.missing,
        sheet=sheet.name,
        columns=["file", "mark", "pixels", *kinds, *(COLUMNS[key] for key in keys)],
        rows=rows,
        provenance=provenance([each.record for each in results.files]),
    )


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
    each: ShownFile, drawn: Drawn, kinds: Sequence[str], keys: Sequence[str], folder: Path
) -> dict[str, object]:
    pictures: list[tuple[bytes, str, int] | None] = []
    for kind in kinds:
        pixels = drawn.get(kind)
        if pixels is None:
            pictures.append(None)
            continue
        width = max(1, round(SHOWN * pixels.shape[1] / max(pixels.shape[:2])))
        pictures.append((encoded(pixels), f"{each.name}, {kind}", width))
    doubts = ", ".join(_DOUBTS.get(doubt, doubt) for doubt in each.record.doubts or ())
    at = f" at {each.figures.fitted_width}x{each.figures.fitted_height}" if each.figures.lost else ""
    return {
        "name": each.name,
        "address": beside(each.translated.relative_to(folder).as_posix()),
        "doubts": doubts if each.record.doubtful else None,
        "size": f"{each.figures.width}x{each.figures.height}{at}",
        "pictures": pictures,
        "figures": [getattr(each.figures, key) for key in keys],
    }


def _write_sheet(
    path: Path, chosen: Sequence[tuple[ShownFile, Drawn]], kinds: Sequence[str], results: Results
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


def preview(
    path: Path, side: int, *, span: tuple[float, float] | None, scale: tuple[float, float] = (1.0, 0.0)
) -> Preview | None:
    """The picture in a file, (H, W, 3) of 0 to 255, its longer side at most `side`; None if it cannot be drawn."""
    try:
        picture = read_image(path, ImageLimits(max_bytes=MOST_BYTES))
        height, width = picture.pixels.shape[:2]
        try:
            low, high = Scale(1, 1, span).numbers(picture, path, scale)
        except UsageError:
            low, high = float(picture.pixels.min()), float(picture.pixels.max())
        factor = min(1.0, side / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        rule = PictureRule(3, *size, "resize", low, max(high, low + 1e-6))
        drawn: Preview = to_pixels(to_array(picture, rule)[0][None])[0]
    except DdibError:
        return None
    return drawn


def encoded(pixels: Preview) -> bytes:
    """A preview as a file: PNG where it is small, else JPEG."""
    if max(pixels.shape[:2]) < JPEG_FROM:
        return encode_png(pixels)
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()


def squared(pixels: Preview | None, side: int) -> Pictures:
    """A preview in the middle of a white square, (3, side, side) in [-1, 1]; it is cut to every n-th pixel to fit."""
    square = np.ones((3, side, side), np.float32)
    if pixels is None:
        return square
    step = -(-max(pixels.shape[:2]) // side)
    small = pixels[::step, ::step]
    factor = max(1, side // max(small.shape[:2]))
    small = small.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = small.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = small.transpose(2, 0, 1) / 127.5 - 1
    return square

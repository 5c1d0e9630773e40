"""The pages of `ddib translate`, `ddib evaluate` and `ddib try`: one file with reduced pictures, the others linked."""

from __future__ import annotations

import io
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.data.fitting import PictureRule, file_range, to_array
from ddib_fed.data.pictures import ImageLimits, Picture, encode_png, read_content, shown_pixels
from ddib_fed.errors import DdibError
from ddib_fed.evaluation.features import SampleVerdict
from ddib_fed.evaluation.judgement import FigureTable, Report, tables
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.evaluation.translations import FoundPicture
from ddib_fed.pages import beside, write_page
from ddib_fed.record import Part, Record, undigits

if TYPE_CHECKING:
    from ddib_fed.models.manifest import Manifest

MOST_BYTES = 1 << 30
JPEG_FROM = 64  # pixels of the longer side; as a PNG it would have three times the bytes
MANY = 200  # pictures, beyond which previews are smaller
SIDE, SIDE_OF_MANY = 384, 192
SHOWN = 96
RED = (220, 20, 60)
COLUMNS: Final[Mapping[str, str]] = {
    "cycle_psnr": "round trip dB",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "edge_correlation": "edge correlation",
    "differs": "differs from the map",
}

Preview = NDArray[np.uint8]  # (H, W, 3)
Drawn = dict[str, Preview | None]  # by kind: source, translated, returned, differs


def _drawn(each: FoundPicture, side: int) -> Drawn:
    """Return the pictures of one file, each with the longer side at most `side` pixels."""
    figures, back = each.picture, each.picture.back_scale
    given, made = figures.source_range, figures.target_range
    files = {
        "source": (each.files.get(Part.SOURCE), given, (1.0, 0.0)),
        "translated": (each.translated, made, figures.output_scale),
        "returned": (each.files.get(Part.RETURNED), given if back else None, back or (1.0, 0.0)),
    }
    drawn = {kind: preview(path, side, span, scale) for kind, (path, span, scale) in files.items() if path}
    if figures.differs_at and (under := drawn["translated"]) is not None:
        drawn["differs"] = reddened(under, figures.differs_at)
    return drawn


def write_results(
    page: Path,
    target: str,
    total: int,
    results: Sequence[FoundPicture],
    missing: Sequence[tuple[str, str]] = (),
    *,
    on_drawn: Callable[[int, int], None] | None = None,
) -> None:
    """Write the page of `total` files translated to `target`, with the reasons why others are missing."""
    files = sorted(results, key=lambda each: (-each.record.severity, each.name))
    side = SIDE if len(files) <= MANY else SIDE_OF_MANY
    given = {
        "source": any(Part.SOURCE in each.files for each in files),
        "differs": any(each.picture.differs_at for each in files),
        "returned": any(Part.RETURNED in each.files for each in files),
    }
    kinds = [kind for kind in ("source", "translated", "differs", "returned") if given.get(kind, True)]
    columns = ["pixels", *COLUMNS.values()]
    columns = [name for name in columns if any(name in each.record.figures for each in files)]
    rows = []
    for number, each in enumerate(files):
        drawn, values = _drawn(each, side), [each.record.figures.get(name) for name in columns]
        address = beside(each.translated.relative_to(page.parent).as_posix())
        doubts = ", ".join(
            COLUMNS.get(doubt, doubt).removesuffix(" dB") for doubt in each.record.doubts or ()
        )
        mark = f"doubtful: {doubts}" if each.record.doubtful else ""
        rows.append(picture_row(each.name, {kind: drawn.get(kind) for kind in kinds}, values, mark, address))
        if on_drawn is not None:
            on_drawn(number + 1, len(files))
    left_out = FigureTable("Not translated", ("file", "why"), tuple(missing), kind="text")
    write_page(
        page,
        "pictures.html",
        title=f"Translations to {target}",
        verdict=verdict(total, results, len(missing)),
        notes=_remarks(results),
        tables=[left_out] if missing else [],
        columns=["file", "mark", *kinds, *columns],
        rows=rows,
        left_out=0,
        provenance=provenance([each.record for each in results]),
    )


def picture_row(
    name: str, drawn: Drawn, figures: Sequence[object], mark: str = "", address: str = ""
) -> dict[str, Any]:
    """Return a picture's row on a page: each picture as a file, its description, and its width on the page."""

    def cell(kind: str, pixels: Preview) -> tuple[bytes, str, int]:
        width = max(1, round(SHOWN * pixels.shape[1] / max(pixels.shape[:2])))
        return encoded(pixels), f"{name}, {kind}", width

    cells = [None if pixels is None else cell(kind, pixels) for kind, pixels in drawn.items()]
    return {"name": name, "address": address, "mark": mark, "pictures": cells, "figures": figures}


def verdict(total: int, results: Sequence[FoundPicture], missing: int) -> str:
    """Count translated, doubtful and missing files; first name those not translated at their own size."""
    done, doubtful = len(results), sum(bool(each.record.doubtful) for each in results)
    sentence = f"{done:,} of {total:,} files are translated"
    if any(each.record.doubtful is not None for each in results):
        sentence += f"; doubtful: {doubtful:,}" if doubtful else "; none is marked doubtful"
    sentence += f"; left out or failed: {missing:,}." if missing else "."
    fitted = Record.fitted_line([(each.name, each.record) for each in results])
    return f"{fitted}. {sentence}" if fitted else sentence


def _remarks(results: Sequence[FoundPicture]) -> list[str]:
    values = [p for each in results if (p := each.picture.cycle_psnr) is not None]
    notes = Record.doubt_lines([(each.name, each.record) for each in results])
    if values:
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        notes.append(f"Round trip: median {middle:.1f} dB, nine in ten between {low:.1f} and {high:.1f} dB.")
    elif all(each.record.doubtful is None for each in results):
        notes.append(
            "Nothing was measured that could mark a picture as doubtful: translate with --cycle to have it."
        )
    if clipped := sum(bool(each.picture.clipped) for each in results):
        notes.append(
            f"{clipped:,} pictures have values outside the range of the source's model; these were clipped."
        )
    return [
        *notes,
        "These pictures are made by machine. The figures here say nothing about findings in them.",
    ]


_FACTS: Final[Mapping[str, Callable[[Record], str]]] = {
    "source": lambda r: f"{r.source_institution}/{r.source_domain}".lstrip("/"),
    "target": lambda r: f"{r.target_institution}/{r.target_domain}".lstrip("/"),
    "jobs": lambda r: r.job_id,
    "solver": lambda r: (
        f"{r.solver.solver}, {r.solver.evaluations} evaluations a leg, grid {r.solver.grid}, "
        f"depth {r.solver.depth:g}, share {r.solver.share:g}, temperature {r.solver.temperature:g}, "
        f"blend {r.solver.blend:g}"
    ),
    "softening": lambda r: f"noise level {r.soften_sigma:g}",
    "class": lambda r: f"{r.source_class} to {r.target_class}" if r.source_class or r.target_class else "",
    "guidance": lambda r: ", ".join(
        f"{name} {value:g}"
        for name, value in ({} if r.guidance is None else asdict(r.guidance)).items()
        if value is not None and value is not False
    ),
    "calibration": lambda r: f"{r.calibration_kind} {r.calibration_sha256}".strip(),
    "contract": lambda r: r.contract_sha256,
    "source's model": lambda r: r.source_model_sha256,
    "target's model": lambda r: r.target_model_sha256,
    "source's policy": lambda r: r.policy_sha256,
}


def provenance(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return each fact with its value, or with its values and how many pictures have each."""
    rows = []
    for name, fact in _FACTS.items():
        counts = Counter(value for record in records if (value := fact(record)))
        several = len(counts) > 1
        if values := [f"{value} ({count:,})" if several else value for value, count in counts.items()]:
            rows.append((name, ", ".join(values)))
    return rows


def preview(
    path: Path, side: int, span: tuple[float, float] | None, scale: tuple[float, float] = (1.0, 0.0)
) -> Preview | None:
    """Draw the picture in a file, or the middle slices of a volume, of at most `side`; None if it cannot be drawn."""
    limits = ImageLimits(max_bytes=MOST_BYTES)
    try:
        if path.suffix == ".dcm":  # a slice that `ddib translate` wrote
            import pydicom

            pixels = np.atleast_3d(pydicom.dcmread(path).pixel_array)
        else:
            pixels = shown_pixels(read_content(path, limits), limits)
        low, high = file_range(pixels, span, scale) or (float(pixels.min()), float(pixels.max()))
        factor = min(1.0, side / max(pixels.shape[:2]))
        height, width = (max(1, round(length * factor)) for length in pixels.shape[:2])
        rule = PictureRule(3, height, width, "resize", low, max(high, low + 1e-6))
        return np.asarray(to_pixels(to_array(Picture(pixels, ""), rule)[0][None])[0])
    except DdibError:
        return None


def reddened(pixels: Preview, digits: str) -> Preview:
    """Mark a preview (H, W, 3) red where the record says that the translation differs from the map."""
    weight = 0.7 * undigits(digits, pixels.shape[:2])[..., None]
    return np.asarray(np.rint((1.0 - weight) * pixels + weight * np.array(RED, np.float32)), np.uint8)


def encoded(pixels: Preview) -> bytes:
    """Encode a preview: as PNG if it is small, else as JPEG."""
    if max(pixels.shape[:2]) < JPEG_FROM:
        return encode_png(pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()


POOR_CYCLE_DB = 30.0
RISEN = 1.05
NEAR = 0.5
MORE_TIME = "The same command with more --time trains on from here."


@dataclass(frozen=True, slots=True)
class SideFound:
    """A side of a rehearsal: its folder, its model, and pictures of how it was trained."""

    folder: Path
    lines: tuple[str, ...]
    manifest: Manifest
    bundle: Path
    loss_chart: bytes
    samples: bytes
    held_out: bytes | None
    held_out_losses: tuple[float, ...]

    @property
    def domain(self) -> str:
        return self.manifest.domain

    @property
    def verdict(self) -> str:
        if (judged := SampleVerdict.of_figures(self.manifest.training.figures)) is None:
            return "Too few pictures were held out to judge the samples."
        return judged.sentence(self.manifest.training.steps)

    @property
    def figures(self) -> list[tuple[str, Any]]:
        manifest = self.manifest
        return [
            ("bundle", self.bundle),
            ("size", " x ".join(map(str, manifest.sample_shape))),
            ("parameters", f"{manifest.parameters:,}"),
            ("steps", f"{manifest.training.steps:,}"),
            *((key.replace("_", " "), value) for key, value in manifest.training.figures.items()),
        ]

    def advice(self) -> Iterator[str]:
        figures, losses = self.manifest.training.figures, self.held_out_losses
        measured = SampleVerdict.of_figures(figures)
        if measured is not None and measured.level in {"not yet", "near"}:
            yield f"{self.verdict}. {MORE_TIME}"
        if losses and losses[-1] > RISEN * min(losses):
            yield (
                f"the held-out loss rose from {min(losses):.4f} to {losses[-1]:.4f}: the model begins to learn its "
                "pictures by heart. Train for less time, add pictures, or use --flip where mirrored pictures are "
                "possible."
            )
        elif losses and losses[-1] <= min(losses):
            yield f"the held-out loss ({losses[-1]:.4f}) was still falling. {MORE_TIME}"
        near, usual = (figures.get(f"nearest_training_picture{part}") for part in ("", "_held_out"))
        if near is not None and usual is not None and near < NEAR * usual:
            yield (
                f"samples lie nearer to training pictures ({near:.4f}) than new pictures do ({usual:.4f}): "
                "the model repeats its pictures. Add pictures, or train for less time."
            )


@dataclass(frozen=True, slots=True)
class WayFound:
    """A direction of a rehearsal: the report on its translations, empty where there are none."""

    title: str
    folder: Path
    report: Report
    sheet: bytes | None
    notes: tuple[str, ...] = ()

    @property
    def tables(self) -> list[FigureTable]:
        return tables(self.report) if self.report else []

    def advice(self) -> Iterator[str]:
        if self.sheet is None:
            yield "no held-out picture has a latent that a node would let pass: train for longer."
            return
        report = self.report
        cycle, edges = (report["spread"].get(key) for key in ("cycle_psnr", "edge_correlation"))
        if cycle is not None and cycle["median"] < POOR_CYCLE_DB:
            yield (
                f"the round trip reaches {cycle['median']:.1f} dB: try more --evaluations, a smaller --soften-sigma, "
                "or a longer training."
            )
        chance = None if edges is None else edges["chance"]
        if edges is not None and chance is not None and edges["median"] < 2.0 * max(chance, 0.05):
            yield (
                f"edges agree by {edges['median']:.2f}, those of pictures that do not belong together by {chance:.2f}: "
                "hardly any structure is kept. Start both models from one public bundle (ddib model train --init), "
                "train for longer, or try ddib translate --set depth=0.6, which reveals more of the picture."
            )


def write_rehearsal(
    path: Path, sides: tuple[SideFound, SideFound], ways: tuple[WayFound, WayFound], shared: Sequence[str]
) -> None:
    title = f"Rehearsal of {' and '.join(side.domain for side in sides)}"
    write_page(
        path, "rehearsal.html", title=title, advice=advice(sides, ways, shared), ways=ways, sides=sides
    )


def advice(
    sides: tuple[SideFound, SideFound], ways: tuple[WayFound, WayFound], shared: Sequence[str]
) -> list[str]:
    """Return what to try next, the most important first."""
    suggestions: list[str] = []
    if shared:
        suggestions.append(
            f"{len(shared)} pictures are in both folders ({shared[0]}, for one): take them out of one. "
            "Two institutions would share none, so this rehearsal is too kind."
        )
    suggestions += [f"{side.domain}: {said}" for side in sides for said in side.advice()]
    suggestions += [f"{way.title}: {said}" for way in ways for said in way.advice()]
    first, second = (shlex.quote(str(side.bundle)) for side in sides)
    usable = (
        f"Both models can be used as they are: ddib translate FOLDER --source {first} --target {second} --out DIR. A "
        "node serves a model by `bundle` under [model] in its node.toml."
    )
    return [*(suggestions or ["Nothing stands out. More training time is what usually helps next."]), usable]

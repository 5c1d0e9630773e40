"""`ddib_fed.evaluate`: a folder of translations into figures, with their intervals, and a page of its pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ddib_fed.calibration.record import map_beside
from ddib_fed.data.fitting import Fit
from ddib_fed.evaluation.judgement import FigureTable, Report, judge, tables, worst_first
from ddib_fed.evaluation.pages import COLUMNS, picture_row
from ddib_fed.evaluation.sheets import as_pictures, to_pixels
from ddib_fed.evaluation.translations import Span, Translations, read_translations
from ddib_fed.metrics import Pictures
from ddib_fed.pages import write_page
from ddib_fed.record import PictureFigures, Record

if TYPE_CHECKING:
    from ddib_fed.model import Model

FROM_RECORDS = ("cycle_mse", "cycle_psnr", "edge_correlation")


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """Figures of a folder of translations.

    Attributes
    ----------
    report : Mapping
        JSON values. "count" and "shape"; "ways": of the translations and of each baseline the mean of each figure with
        its interval; "spread" of each figure; "pictures": the figures of each; "latent"; "notes": what is remarkable.
    translations
        The pictures, as stacks (N, C, H, W) float32 in [-1, 1], with their names and records.
    through : Mapping
        What the target's autoencoder makes of the map alone and of the truth, by `map_through` and `truth_through`;
        empty without a target model of latents.
    """

    report: Mapping[str, Any]
    translations: Translations = field(repr=False)
    through: Mapping[str, Pictures] = field(default_factory=dict, repr=False)

    def tables(self) -> list[FigureTable]:
        """Return the figures as tables, each with a title, columns, rows and a note."""
        return tables(dict(self.report))

    def write_page(self, path: Path, title: str, *, most_rows: int = 200) -> None:
        """Write an HTML page, the worst pictures first; it states how many it leaves out."""
        shown = {kind: getattr(self.translations, kind) for kind in ("source", "mapped")}
        shown["mapped, through the autoencoder"] = self.through.get("map_through")
        shown |= {kind: getattr(self.translations, kind) for kind in ("translated", "truth")}
        shown["truth, through the autoencoder"] = self.through.get("truth_through")
        shown["back"] = self.translations.back
        stacks = {kind: to_pixels(as_pictures(stack)) for kind, stack in shown.items() if stack is not None}
        rows = worst_first(self.report["pictures"])
        keys = [key for key in COLUMNS if key in rows[0]]
        where = {name: number for number, name in enumerate(self.translations.names)}
        write_page(
            path,
            "pictures.html",
            title=title,
            verdict="",
            notes=self.report["notes"],
            tables=self.tables(),
            columns=["file", "mark", *stacks, *(COLUMNS[key] for key in keys)],
            rows=[
                picture_row(
                    row["name"],
                    {kind: pixels[where[row["name"]]] for kind, pixels in stacks.items()},
                    [row[key] for key in keys],
                    "doubtful" if row.get("doubtful") else "",
                )
                for row in rows[:most_rows]
            ],
            left_out=max(0, len(rows) - most_rows),
            provenance=[],
        )


def evaluate(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    truth: str | Path | None = None,
    domain: str | Path | Pictures | None = None,
    target: Model | str | Path | None = None,
    by_folder: bool = False,
    size: int | None = None,
    fit: Fit = "resize",
    span: Span | None = None,
    on_read: Callable[[int, int], None] | None = None,
) -> Figures:
    """Measure a folder of translations against references; figures that need a missing one are left out.

    Parameters
    ----------
    folder, source, truth
        A folder that `ddib translate` wrote, or any of pictures; the sources and true translations by the same names.
    domain
        Other pictures of the target domain, for the feature distance and histogram matching: a folder, or
        (M, C, H, W) in [-1, 1].
    target
        The target's model, its name or folder. Of a model of latents the baselines are also shown as its autoencoder
        gives them back, which is as near as its translations can come: the map alone, and the truth.
    by_folder
        Whether intervals draw whole folders of pictures, such as the slices of one patient.
    size, fit
        Height and width that all are resized to, None for the first translation's; ``resize``, ``crop`` or ``pad``.
    span
        Raw values of black and white; None for the models' if the records have them, else those of the files' type.
    on_read
        Called with (files read, in all).

    Raises
    ------
    FileMissing, ShapeMismatch, PictureMisfit, UsageError
        There are no pictures, some have no partner, they do not fit each other, or their range is not known.

    Examples
    --------
    >>> import ddib_fed, tempfile
    >>> model = ddib_fed.Model.open("satellite")
    >>> folder = tempfile.mkdtemp()
    >>> report = model.draw(folder, 2, ddib_fed.Settings(evaluations=3))
    >>> ddib_fed.evaluate(folder, truth=folder).report["count"]
    2
    """
    read = read_translations(
        Path(folder),
        source=None if source is None else Path(source),
        truth=None if truth is None else Path(truth),
        domain=Path(domain) if isinstance(domain, str) else domain,
        size=size,
        fit=fit,
        span=span,
        mapping=map_beside(Path(folder)),
        on_read=on_read,
    )
    through = {} if target is None else _through(target, read)
    figures = {
        key: [getattr(record.picture or PictureFigures(), key) for record in read.records]
        for key in FROM_RECORDS
    }
    report = judge(
        read.translated,
        source=read.source,
        truth=read.truth,
        back=read.back,
        domain=read.domain,
        recorded={key: np.array(values, np.float64) for key, values in figures.items() if None not in values},
        marks=[record.doubtful for record in read.records],
        mapping=read.mapping,
        through=through,
        clusters=np.array([str(PurePosixPath(name).parent) for name in read.names]) if by_folder else None,
    )
    named = Counter(
        (r.calibration_kind, r.calibration_sha256[:12]) for r in read.records if r.calibration_sha256
    )
    report["notes"] = [
        *report["notes"],
        *read.notes,
        *Record.doubt_lines([*zip(read.names, read.records, strict=True)]),
        *(
            f"{count} of {report['count']} pictures were translated under the {kind} calibration {sha256}."
            for (kind, sha256), count in named.items()
        ),
    ]
    report["latent"] = _of_records(read.records)
    report["pictures"] = [
        {"name": name, **row} for name, row in zip(read.names, report["pictures"], strict=True)
    ]
    return Figures(report, read, through)


def _through(target: Model | str | Path, read: Translations) -> dict[str, Pictures]:
    """Return the map alone and the truth as the target's autoencoder gives them back; of a model without one none."""
    from ddib_fed.model import Model

    model, shape = target if isinstance(target, Model) else Model.open(target), read.translated.shape[1:]
    if not model.has_autoencoder:
        return {}
    if model.shape != shape:
        model = model.of_scene(*shape[1:])
    stacks = {"map_through": read.mapped, "truth_through": read.truth}
    return {
        name: model.reconstruct(stack.clip(-1.0, 1.0)) for name, stack in stacks.items() if stack is not None
    }


def _of_records(records: Sequence[Record]) -> Report | None:
    """Return statistics of all latents by those in the records; None where a record has none."""
    keys = ("mean", "std", "kurtosis", "correlation")
    columns = [[getattr(record.latent, key) for record in records] for key in keys]
    if any(None in column for column in columns):
        return None
    means, deviations, kurtosis, correlation = (np.array(column, np.float64) for column in columns)
    mean = float(means.mean())
    return {
        "mean": mean,
        "std": float(np.sqrt(max(0.0, float((deviations**2 + means**2).mean()) - mean**2))),
        # Of one picture's few patches: comparable with another picture's, not with zero.
        "kurtosis": float(np.median(kurtosis)),
        "correlation": float(np.median(correlation)),
    }

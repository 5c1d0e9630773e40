"""Tables of the report on a folder of translations, for the terminal and for the page.

A table explains its figures and what to compare them with; unknown figures have no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddib_fed.metrics.features import NAME
from ddib_fed.metrics.judgement import Figures
from ddib_fed.metrics.ranking import worst_first

Cell = str | float | None

TITLES = {
    "translated": "translated",
    "source": "source unchanged",
    "histogram": "histogram match, unpaired",
    "mean": "mean picture of the domain",
    "random": "random picture of the domain",
    "colour_map": "quadratic colour map, fitted on pairs",
    "truth": "the truth itself",
    "floor": "real pictures among themselves",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures.

    Attributes:
        title: Of the table.
        columns: The first names the line.
        rows: A name and figures; None for unknown.
        note: An explanation for the reader.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def tables(report: Figures) -> list[Table]:
    """Every table that a report (`folder_report.evaluate_folder`, `judgement.judge`) has figures for."""
    found = (_quality(report), _round_trip(report), _retrieval(report), _features(report), _latent(report))
    return [table for table in found if table is not None]


def per_picture(report: Figures) -> list[Figures]:
    """The rows of all pictures, the worst first (`ranking`)."""
    rows: Sequence[Figures] = report["pictures"]
    return [rows[index] for index in worst_first(rows)]


def _quality(report: Figures) -> Table | None:
    paired = report["paired"]
    if paired is None:
        return None
    own = tuple(paired[name]["mean"] for name in ("psnr", "ssim", "mse"))
    rows = [("translated", *own)]
    rows += [
        (TITLES[name], means["psnr"], means["ssim"], means["mse"])
        for name, means in report["baselines"].items()
    ]
    note = "Means over the pictures. PSNR rewards blur: the mean picture of a domain beats many good translations."
    return Table("Translation and truth", ("", "PSNR dB", "SSIM", "MSE in [-1, 1]"), tuple(rows), note)


def _round_trip(report: Figures) -> Table | None:
    rows: list[tuple[Cell, ...]] = []
    notes = []
    if (cycle := report["cycle"]) is not None:
        rows.append(("round trip, PSNR dB", *_spread(cycle["psnr"]), None))
    if (kept := report["structure"]) is not None:
        chance = kept["chance"] or {}
        rows += [
            (title, *_spread(kept[key]), chance.get(key))
            for title, key in (
                ("edge correlation", "edge_correlation"),
                ("mutual information, bits", "mutual_information"),
            )
        ]
        if kept["doubtful"] is not None:
            notes.append(f"Doubtful: {kept['doubtful']} of {report['count']}.{_least(kept['thresholds'])}")
    notes.append("A good round trip does not show that structure was kept.")
    columns = ("", "median", "mean", "worst", "by chance")
    return Table("Round trip and structure", columns, tuple(rows), " ".join(notes)) if rows else None


def _least(thresholds: Figures | None) -> str:
    if thresholds is None:
        return ""
    edges, shared = thresholds["edge_correlation"], thresholds["mutual_information"]
    return f" Edge correlation below {edges:.2f} or mutual information below {shared:.2f} bits is doubtful."


def _spread(spread: Figures) -> tuple[Cell, ...]:
    return spread["median"], spread["mean"], spread["min"]


def _retrieval(report: Figures) -> Table | None:
    found = report["retrieval"]
    if found is None:
        return None
    rows = tuple(
        (TITLES[name], one["pixels"]["found"], one["features"]["found"] if "features" in one else None)
        for name, one in found.items()
    )
    first: dict[str, Any] = found["translated"]["pixels"]
    chance = ("by chance", first["chance"], first["chance"])
    title = f"True partner among the {first['nearest']} nearest of {first['count']}"
    note = "By the MSE of pictures less their mean, and by features of an ImageNet classifier."
    return Table(title, ("", "by pixels", "by features"), (*rows, chance), note)


def _features(report: Figures) -> Table | None:
    found = report["features"]
    if found is None:
        return None
    keys = ("frechet_early", "frechet_late", "kernel_early", "kernel_late")
    named = {**found["distance"], "floor": found["floor"]}
    rows = tuple((TITLES[name], *(one[key] for key in keys)) for name, one in named.items())
    note = f"To {found['domain_pictures']} pictures of the domain, on {NAME}; not the published FID or KID. "
    note += "With few pictures the Frechet distance is too large: compare with the last line."
    columns = ("", "Frechet, block 5", "Frechet, block 11", "kernel, block 5", "kernel, block 11")
    return Table("Feature distance to the target domain", columns, rows, note)


def _latent(report: Figures) -> Table | None:
    latent = report.get("latent")
    if latent is None:
        return None
    row = ("latents", latent["mean"], latent["std"], latent["kurtosis"], latent["correlation"])
    rows: list[tuple[Cell, ...]] = [row]
    note = "Correlation of two pixels of a patch of 8 x 8, of the median picture: keep the latents for all together."
    if "noise_correlation" in latent:
        rows.append(("true noise", 0.0, 1.0, 0.0, latent["noise_correlation"]))
        note = "Mean correlation of two pixels of a patch of 8 x 8; few patches make that of true noise large too."
    return Table("Latents", ("", "mean", "std", "kurtosis", "correlation"), tuple(rows), note)

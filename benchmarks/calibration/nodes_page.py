"""Holds what `benchmarks.calibration.nodes` measured against bounds, and writes its tables into docs/calibration.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.calibration.directed import OUT
from benchmarks.pages import between, markdown
from ddib_fed.files import write_file

PAGE = OUT.parents[1] / "calibration.md"
WRITER = "benchmarks/calibration/nodes.py"
BOUNDED = ("psnr", "ssim", "partner", "frechet_early")
BOUNDS: Mapping[str, tuple[float, float, float, float]] = {
    "rotation": (20.8, 0.54, 0.83, 36),
    "rotation-0.7": (21.9, 0.61, 0.90, 36),
    "colour-map": (20.8, 0.54, 0.83, 36),
    "colour-map-0.7": (21.9, 0.61, 0.90, 36),
}
"""Of PSNR in dB, SSIM, partner among 5 (at least) and feature distance (at most), by job."""
TITLES = {
    "uncalibrated": "no calibration",
    "rotation": "rotation, no training",
    "rotation-0.7": "rotation, depth .7",
    "colour-map": "colour map, source retrained",
    "colour-map-0.7": "colour map, depth .7",
}
NAMES = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "partner": "partner among 5",
    "frechet_early": "Frechet, block 5",
}


class Held(NamedTuple):
    """One figure of one job held against a bound."""

    name: str
    value: float
    bound: float
    holds: bool
    beyond_histogram: bool


def held(name: str, found: Mapping[str, Any]) -> list[Held]:
    """The bounded figures of a job; `beyond_histogram`: its interval ends before histogram matching's value."""
    rows = []
    for key, bound in zip(BOUNDED, BOUNDS[name], strict=True):
        figure, matched = found["runs"][name]["figures"][key], found["histogram"][key]["value"]
        if key == "frechet_early":
            rows.append(Held(key, figure["value"], bound, figure["value"] <= bound, figure["high"] < matched))
        else:
            rows.append(Held(key, figure["value"], bound, figure["value"] >= bound, figure["low"] > matched))
    return rows


def write_page(pair: str, found: Mapping[str, Any]) -> None:
    parts = [_heading(found), _pictures(found), _sent(found), _bounds(found)]
    text = between(PAGE.read_text(encoding="utf-8"), f"nodes {pair}", WRITER, "\n\n".join(parts))
    write_file(PAGE, text.encode())


def _heading(found: Mapping[str, Any]) -> str:
    runs = found["runs"]
    trained = f", the source retrained for {found['steps']} steps" if "colour-map" in runs else ""
    evaluations = runs["uncalibrated"]["solver"]["evaluations"]
    return (
        f"{found['source']} → {found['target']}, {found['count']} test pictures as PNG files, {evaluations} "
        f"evaluations a leg{trained}. In brackets 95 % of bootstrap draws of the {found['clusters']} clusters of "
        "overlapping pictures:"
    )


def _pictures(found: Mapping[str, Any]) -> str:
    columns = ("", *NAMES.values(), "round trip dB, from the records", "least", "marked doubtful")
    rows = [("histogram matching", *_figures(found["histogram"]), "–", "–", "–")]
    for name, run in found["runs"].items():
        trip, least = run["records"].get("recorded_cycle_psnr"), run["least_cycle_psnr"]
        doubtful = run["doubtful"]
        marks = f"{doubtful['structure']} structure, {doubtful['cycle_psnr']} round trip"
        cells = (ranged(trip), "–" if least is None else f"{least:.3g}", marks)
        rows.append((TITLES[name], *_figures(run["figures"]), *cells))
    rows.append(("the truth itself", "–", "–", "–", ranged(found["truth_distance"]), "–", "–", "–"))
    return markdown(columns, tuple(rows))


def _sent(found: Mapping[str, Any]) -> str:
    columns = (
        "",
        "latent's deviation",
        "its patch correlation",
        "patch correlation of all together / noise's",
        "bytes a picture, both ways",
    )
    rows = []
    for name, run in found["runs"].items():
        least, most = run["wire_bytes"]["least"], run["wire_bytes"]["most"]
        size = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        records = run["records"]
        rows.append(
            (
                TITLES[name],
                ranged(records["latent_std"]),
                ranged(records["latent_correlation"]),
                f"{run['figures']['latent_ratio']:.2f}",
                size,
            )
        )
    crossed = [
        f"For the {kind}, once: " + ", ".join(f"{what} {size:,} B" for what, size in one["crossed"].items())
        for kind, one in found["crossed"].items()
    ]
    return (
        "What crossed, from the records:\n\n"
        + markdown(columns, tuple(rows))
        + "\n\n"
        + ".\n".join(crossed)
        + "."
    )


def _bounds(found: Mapping[str, Any]) -> str:
    columns = (
        "held against bounds",
        *NAMES.values(),
        "all four intervals beyond histogram matching",
        "round trip less than without, dB",
        "patch correlation more than without",
    )
    rows = []
    for name in BOUNDS:
        if name in found["runs"]:
            held_ = held(name, found)
            cells = [
                f"{row.value:.3g} {'≤' if row.name == 'frechet_early' else '≥'} {row.bound:.3g}: {_yes(row.holds)}"
                for row in held_
            ]
            lost = found["runs"][name]["less_than_uncalibrated"]
            more = {key: -lost["latent_correlation"][key] for key in ("value", "low", "high")}
            more["low"], more["high"] = more["high"], more["low"]
            beyond = _yes(all(row.beyond_histogram for row in held_))
            rows.append((TITLES[name], *cells, beyond, ranged(lost.get("recorded_cycle_psnr")), ranged(more)))
    return markdown(columns, tuple(rows))


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _figures(figures: Mapping[str, Any]) -> list[str]:
    return [ranged(figures[key]) for key in BOUNDED]


def ranged(figure: Mapping[str, float] | None) -> str:
    return "–" if figure is None else f"{figure['value']:.3g} [{figure['low']:.3g}, {figure['high']:.3g}]"

"""Tables and curves of pictures.md and latents.md in docs from the JSON that benchmarks/pictures/measure.py leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.pages import between, markdown
from benchmarks.pictures.pair import DEPTHS, DOCS, PAIRS, SIGMAS
from ddib_fed.datasets.shipped import SHIPPED
from ddib_fed.files import write_file
from ddib_fed.metrics.latents import WHITE_RATIO
from ddib_fed.reports.folder import TITLES, tables
from ddib_fed.reports.plots import DPI, FRAME, INK, save

Found = dict[str, Any]
# Title, colour, style and value of each curve.
Lines = tuple[tuple[str, str, str, Callable[[Found], float]], ...]
# What was asked for, and what was hoped for: PSNR dB and SSIM.
GOALS = {"satellite-relief": (21.5, 0.45), "brain": (22.0, 0.70)}
ROUND_TRIP_DB = 38.0, 45.0
STD_BOUNDS = 0.97, 1.03
PARTNER_TIMES_CHANCE = 5.0
DISTANCE_SHARE = 0.5
COLUMNS_OF_CURVE = {
    "steps": "steps",
    "CPU minutes": "cpu_minutes",
    "PSNR dB": "psnr",
    "SSIM": "ssim",
    "partner among 5": "partner",
    "round trip dB": "cycle_psnr",
    "latent std": "std",
    "patch correlation / noise's": "ratio",
}
"""Titles and names of what `training_curve` measures."""


def report(out: Path) -> None:
    """Write everything that has been measured into the pages below `out`."""
    for page, write in (("pictures.md", _pictures_page), ("latents.md", _latents_page)):
        path = out / page
        text = (path if path.exists() else DOCS / page).read_text(encoding="utf-8")
        for name in PAIRS:
            text = _filled(text, name, write(out, name))
        write_file(path, text.encode())
    curves = {name: _all(out, name, "depth", DEPTHS) for name in PAIRS}
    if any(curves.values()):
        _draw(
            {name: rows for name, rows in curves.items() if rows}, out / "images" / "pictures" / "depth.png"
        )


def _filled(text: str, name: str, new: str) -> str:
    return between(text, name, "benchmarks/pictures/measure.py", new) if new else text


def _read(out: Path, pair: str, name: str) -> Found | None:
    path = out / "benchmarks" / "pictures" / pair / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _all(out: Path, pair: str, kind: str, values: tuple[float, ...]) -> list[Found]:
    found = (_read(out, pair, f"{kind}-{value:g}") for value in values)
    return [one for one in found if one is not None]


def _pictures_page(out: Path, pair: str) -> str:
    parts = []
    if (quality := _read(out, pair, "quality")) is not None:
        plain = _read(out, pair, "softening-0")
        parts += [_heading(pair, quality), _verdicts(pair, quality, plain)]
        for table in tables(quality):
            parts += [f"**{table.title}**", markdown(table.columns, table.rows), table.note]
        parts += [_picture(pair, "translations", "source, translated, truth, back")]
    if (samples := _read(out, pair, "samples")) is not None:
        parts += [_samples(pair, samples)]
    if depths := _all(out, pair, "depth", DEPTHS):
        parts += [
            "**Partial depth**",
            _depth_table(depths),
            _picture(pair, "depths", "by depth"),
            _cost(depths),
        ]
    return "\n\n".join(parts)


def _heading(pair: str, quality: Found) -> str:
    source, target = PAIRS[pair]
    times = [training["figures"].get("cpu_seconds") for training in quality["training"]]
    trained = (
        f", trained in {' and '.join(f'{seconds / 60:.0f}' for seconds in times)} minutes of CPU"
        if all(times)
        else ""
    )
    steps = quality["settings"]["evaluations"]
    return (
        f"{source} → {target}: {quality['count']} test pictures, {steps} evaluations a leg, "
        f"softened by {quality['soften_sigma'][0]:g}; models of {quality['parameters'][0] / 1e6:.1f} million parameters"
        f"{trained}. {quality['translating_cpu_seconds']:.0f} s of CPU for there and back. "
        f"Source: {SHIPPED[source].note}. Target: {SHIPPED[target].note}."
    )


Compared = tuple[str, float, float, bool, str]
"""What is compared, what was measured, its bound, whether that holds, and the format of both numbers."""


def _comparisons(quality: Found, plain: Found | None) -> list[Compared]:
    own = {key: quality["paired"][key]["mean"] for key in ("psnr", "ssim")}
    other = quality["baselines"]["histogram"]
    lines: list[Compared] = [
        (
            "PSNR above histogram matching",
            own["psnr"],
            other["psnr"],
            own["psnr"] > other["psnr"],
            "{:.1f} dB",
        ),
        ("SSIM above histogram matching", own["ssim"], other["ssim"], own["ssim"] > other["ssim"], "{:.3f}"),
    ]
    if (found := quality["features"]) is not None:
        for key in ("frechet_early", "frechet_late", "kernel_early", "kernel_late"):
            mine, most = (
                found["distance"]["translated"][key],
                DISTANCE_SHARE * found["distance"]["histogram"][key],
            )
            title = f"feature distance ({key.replace('_early', ', block 5').replace('_late', ', block 11')})"
            lines.append(
                (f"{title} at most half of histogram matching's", mine, most, mine <= most, "{:.3g}")
            )
    if (found := quality["retrieval"]) is not None:
        share, chance = found["translated"]["pixels"]["found"], found["translated"]["pixels"]["chance"]
        least = PARTNER_TIMES_CHANCE * chance
        lines.append(("true partner among the 5 nearest, 5 x chance", share, least, share >= least, "{:.3f}"))
        before = found["source"]["pixels"]["found"]
        lines.append(
            ("... more often than for the source unchanged", share, before, share > before, "{:.3f}")
        )
    softened = quality["cycle"]["psnr"]["mean"]
    lines.append(
        ("round trip, softened", softened, ROUND_TRIP_DB[0], softened >= ROUND_TRIP_DB[0], "{:.1f} dB")
    )
    if plain is not None:
        sharp = plain["cycle_psnr"]["mean"]
        lines.append(
            ("round trip, not softened", sharp, ROUND_TRIP_DB[1], sharp >= ROUND_TRIP_DB[1], "{:.1f} dB")
        )
    return lines


def _verdicts(pair: str, quality: Found, plain: Found | None) -> str:
    """Each bound with what was measured."""
    lines = _comparisons(quality, plain)
    latent = quality["latent"]
    low, high = STD_BOUNDS
    holds = low <= latent["std"] <= high
    rows = [(*line[:1], line[4].format(line[1]), line[4].format(line[2]), _word(line[3])) for line in lines]
    rows.append(("latents: standard deviation", f"{latent['std']:.3f}", f"{low} to {high}", _word(holds)))
    white = latent["ratio"] <= WHITE_RATIO
    rows.append(
        (
            "latents: patch correlation / true noise's",
            f"{latent['ratio']:.2f}",
            f"{WHITE_RATIO}",
            _word(white),
        )
    )
    own = [quality["paired"][key]["mean"] for key in ("psnr", "ssim")]
    for title, value, goal in zip(("goal: PSNR", "goal: SSIM"), own, GOALS[pair], strict=True):
        rows.append((title, f"{value:.3g}", f"{goal:g}", "reached" if value >= goal else "not reached"))
    return markdown(("", "measured", "bound", ""), tuple(rows))


def _word(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def _samples(pair: str, samples: Found) -> str:
    rows = []
    for domain, found in samples["samples"].items():
        for title, one in ((f"samples of {domain}", found["distance"]), (TITLES["floor"], found["floor"])):
            rows.append((title, *one.values()))
    columns = ("", "Frechet, block 5", "Frechet, block 11", "kernel, block 5", "kernel, block 11")
    parts = [
        f"**Samples**: {samples['count']} pictures drawn from each model, and their distance to its domain.",
        markdown(columns, tuple(rows)),
        *(_picture(pair, f"samples-{domain}", f"samples of {domain}") for domain in samples["samples"]),
    ]
    return "\n\n".join(parts)


def _depth_table(rows: list[Found]) -> str:
    columns = (
        "depth",
        "MSE",
        "PSNR dB",
        "SSIM",
        "partner among 5",
        "edge correlation",
        "round trip dB",
        "latent and picture",
    )
    body = tuple(
        (
            f"{row['depth']:g}",
            row["paired"]["mse"],
            row["paired"]["psnr"],
            row["paired"]["ssim"],
            row["retrieval"]["found"],
            row["edge_correlation"],
            row["cycle_psnr"]["mean"],
            row["latent_and_picture"],
        )
        for row in rows
    )
    return markdown(columns, body)


def _latents_page(out: Path, pair: str) -> str:
    rows = _all(out, pair, "softening", SIGMAS)
    if not rows:
        return ""
    columns = (
        "soften_sigma",
        "latent std",
        "patch correlation",
        "/ true noise's",
        "round trip dB",
        "round trip MSE",
        "PSNR dB",
        "SSIM",
        "MSE",
        "partner among 5",
    )
    body = tuple(
        (
            f"{row['soften_sigma']:g}",
            f"{row['latent']['std']:.3f}",
            f"{row['latent']['correlation']:.4f}",
            f"{row['latent']['ratio']:.2f}",
            row["cycle_psnr"]["mean"],
            row["cycle_mse"]["mean"],
            row["paired"]["psnr"],
            row["paired"]["ssim"],
            row["paired"]["mse"],
            row["retrieval"]["found"],
        )
        for row in rows
    )
    source, target = PAIRS[pair]
    noise, chance = rows[0]["latent"]["noise_correlation"], rows[0]["retrieval"]["chance"]
    steps = rows[0]["settings"]["evaluations"]
    head = f"{source} → {target}, {rows[0]['count']} test pictures, {steps} evaluations a leg. "
    head += (
        f"True noise of equal shape and count has a patch correlation of {noise:.4f} by the same estimate; "
    )
    head += f"the partner is among 5 by chance {chance:.3f} of the time."
    parts = [head, markdown(columns, body), _cost(rows)]
    if _read(out, pair, "latents") is not None:
        parts.insert(2, _picture(pair, "latents", "latents before and after softening, and true noise"))
    return "\n\n".join(parts)


def _cost(rows: list[Found]) -> str:
    return f"Measured in {sum(row['cpu_seconds'] for row in rows):.0f} s of CPU on one thread."


def _picture(pair: str, name: str, text: str) -> str:
    return f"![{pair}: {text}](images/pictures/{pair}-{name}.png)"


def _draw(curves: dict[str, list[Found]], path: Path) -> None:
    """Errors above, what of the picture is kept and revealed beneath, over depth; a column a pair."""
    above: Lines = (
        ("MSE to the truth", "#d33f6a", "o-", lambda row: row["paired"]["mse"]),
        ("MSE of the round trip", "#4a6fe3", "s-", lambda row: row["cycle_mse"]["mean"]),
    )
    beneath: Lines = (
        ("correlation of latent and picture", "#11a579", "^--", lambda row: row["latent_and_picture"]),
        ("true partner among the 5 nearest", "#8c8c94", "v--", lambda row: row["retrieval"]["found"]),
    )
    figure = Figure(figsize=(4.6 * len(curves), 5.4), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False, sharex=True, sharey="row")
    for column, (pair, rows) in enumerate(curves.items()):
        for axis, lines in zip(axes[:, column], (above, beneath), strict=True):
            for title, colour, style, value in lines:
                x, y = [row["depth"] for row in rows], [value(row) for row in rows]
                axis.plot(x, y, style, color=colour, ms=4, lw=1.3, label=title)
            axis.grid(color=FRAME, linewidth=0.5)
            axis.tick_params(colors=INK, labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False, fontsize=8)
        axes[0, column].set_yscale("log")
        axes[0, column].set_title(" → ".join(PAIRS[pair]), fontsize=10, color=INK)
        axes[1, column].set_ylim(0, 1.05)
        axes[1, column].set_xlabel("depth", fontsize=9, color=INK)
    save(figure, path)


if __name__ == "__main__":
    report(DOCS)

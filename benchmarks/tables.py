"""Writes the tables of the pages from the JSON below docs/benchmarks, between `<!-- table: NAME -->` and its end.

python -m benchmarks.tables            every page
python -m benchmarks.tables --check    ends with 1 if a page has another table than its JSON gives
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.trust.promises import PROMISES

ROOT = Path(__file__).resolve().parents[1]
JSON = ROOT / "docs" / "benchmarks"
PAGES = (ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
END = "<!-- end of table -->"
Rows = Iterable[Iterable[object]]


def main() -> int:
    """Write the tables; 1 if one differed and was only checked."""
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = re.sub(
            rf"<!-- table: (\w+) -->.*?{END}", lambda found: _filled(found[1]), text, flags=re.DOTALL
        )
        if new != text:
            stale.append(page)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    sys.stdout.write("".join(f"{page.relative_to(ROOT)}\n" for page in stale))
    return int("--check" in sys.argv and bool(stale))


def _filled(name: str) -> str:
    return f"<!-- table: {name} -->\n\n{TABLES[name]()}\n\n{END}"


def read(name: str) -> Any:
    return json.loads((JSON / f"{name}.json").read_text(encoding="utf-8"))


def markdown(columns: Iterable[str], rows: Rows) -> str:
    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([body[0], f"|{'---|' * len(lines[0])}", *body[1:]])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def ranged(figure: dict[str, float] | None, digits: int, *, bare: bool = False) -> str:
    """A figure, with its interval."""
    if not figure:
        return "–"
    value, low, high = (f"{figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    return value if bare else f"{value} [{low}, {high}]"


def promises() -> str:
    """Cases and failures of each promise, of the last long runs."""
    rows = []
    for which in ("trust", "chaos"):
        found = read(f"trust/{which}")
        for name, sentence in PROMISES.items():
            tests = [test for test in found["tests"] if test["promise"] == name]
            if tests:
                sums = [sum(test[key] for test in tests) for key in ("cases", "failed", "skipped")]
                rows.append((sentence, f"make {which}", found["date"][:10], len(tests), *sums))
    fuzz = read("trust/fuzz")
    runs, crashes = (sum(row[key] for row in fuzz["parsers"]) for key in ("executions", "crashes"))
    rows.append(
        ("31 parsers under atheris", "make fuzz", fuzz["date"][:10], len(fuzz["parsers"]), runs, crashes, 0)
    )
    return markdown(("promise", "by", "on", "tests", "cases", "failed", "did not run"), rows)


LINES = {
    "histogram": "histogram matching",
    "colour-map-8": "colour map of 8 pairs, no model",
    "plain": "as shipped",
    "calibrated": "**rotation without pairs**",
    "tone": "tone of 8 pairs alone, no model",
    "retrained": "**source retrained on mapped pictures**",
    "retrained-0.85": "the same, depth .85",
    "retrained-0.7": "the same, depth .7",
    "retrained-mixed": "the same, encoder mixed",
    "mixed-calibrated": "rotation, encoder mixed",
}
SEEDS = {"calibrated": "rotation-1", "retrained": "colour-map-1", "retrained-0.7": "colour-map-0.7"}
"""Lines that benchmarks.calibration.unpaired measures, by the end of its file's name."""
DEPTHS = {"tone": None, "retrained": 1.0, "retrained-0.85": 0.85, "retrained-0.7": 0.7}
"""Lines that benchmarks.calibration.anchors measures, by depth."""
BESIDE = {"psnr": 1, "ssim": 2, "partner": 2, "frechet_early": 0, "cycle_psnr": 1}


def calibration() -> str:
    """Both directions of the three pairs, with and without a calibration."""
    rows: list[tuple[object, ...]] = []
    for folder in (
        "satellite-relief",
        "relief-satellite",
        "satellite-etopo",
        "etopo-satellite",
        "brain-t1-brain-t2",
        "brain-t2-brain-t1",
    ):
        for name, title in LINES.items():
            if figures := _line(folder, name):
                ratio = figures.get("latent_ratio")
                rows.append(
                    (
                        folder if name == "histogram" else "",
                        title,
                        *(
                            ranged(figures.get(key), digits, bare=key not in {"psnr", "ssim"})
                            for key, digits in BESIDE.items()
                        ),
                        None if ratio is None else f"{ratio:.2f}",
                    )
                )
    return markdown(
        ("pair", "way", "PSNR dB", "SSIM", "partner", "feature distance", "round trip dB", "whiteness"), rows
    )


def _line(pair: str, name: str) -> dict[str, Any]:
    """Figures of a line: means over seeds where it was trained, else of the table's own JSON."""
    paths = sorted((JSON / "calibration" / "unpaired").glob(f"{pair}-[0-9]-{SEEDS.get(name)}.json"))
    found = [json.loads(path.read_text())["figures"] for path in paths]
    for path in sorted((JSON / "calibration" / "anchors").glob(f"{pair}-[0-9].json")):
        one, depth = json.loads(path.read_text()), DEPTHS.get(name, 0)
        runs = [run for run in one["runs"] if run["depth"] == depth and run["encoder"] == "ode"]
        found += [one["map_alone"]] if depth is None else runs[:1]
    own = JSON / "calibration" / "table" / pair / f"{name}.json"
    if not found and own.exists():
        found = [json.loads(own.read_text())["figures"]]
    mean: dict[str, Any] = {}
    for key in (*BESIDE, "latent_ratio"):
        each = [figures[key] for figures in found if key in figures]
        if each and isinstance(each[0], dict):
            mean[key] = {
                side: sum(one[side] for one in each) / len(each) for side in ("value", "low", "high")
            }
        elif each:
            mean[key] = sum(each) / len(each)
    return mean


def marks() -> str:
    """Shares marked as doubtful."""
    columns = ("pair, under", *(f"{what}: without, under" for what in MARKED))
    rows = [
        (
            f"{one['source']} → {one['target']}, {one['calibration'].replace('a ', '', 1)}",
            *(_shares(one["marked"].get(what)) for what in MARKED),
        )
        for one in read("structure_thresholds")
    ]
    return markdown(columns, rows)


MARKED = (
    "true partners",
    "exchanged true partners",
    "translations",
    "calibrated translations",
    "other places",
)


def _shares(marked: dict[str, float] | None) -> str | None:
    return f"{marked['without']:.0%}, {marked['under']:.0%}" if marked else None


def nodes() -> str:
    """From the published aggregate to the client's files."""
    found = read("calibration/nodes/satellite-relief")
    titles = {
        "uncalibrated": "no calibration",
        "rotation": "rotation",
        "colour-map": "colour map, retrained",
        "colour-map-0.7": "the same, depth .7",
    }
    keys = {"psnr": 1, "ssim": 2, "partner": 2, "frechet_early": 0}
    rows = [
        (
            "histogram matching",
            *(
                ranged(found["histogram"][key], digits, bare=key not in {"psnr", "ssim"})
                for key, digits in keys.items()
            ),
            None,
            None,
        )
    ]
    for name, run in found["runs"].items():
        trip = ranged(run["records"].get("recorded_cycle_psnr"), 1, bare=True)
        cells = (
            ranged(run["figures"][key], digits, bare=key not in {"psnr", "ssim"})
            for key, digits in keys.items()
        )
        rows.append((titles[name], *cells, trip, f"{run['wire_bytes']['most']:,}"))  # type: ignore[arg-type]
    return markdown(
        (
            "",
            "PSNR dB",
            "SSIM",
            "partner among 5",
            "feature distance",
            "round trip dB",
            "bytes a picture, at most",
        ),
        rows,
    )


def epsilon() -> str:
    """Median of the draws."""
    found = read("calibration/epsilon/satellite-relief")
    groups: dict[tuple[int, float | None], list[dict[str, float]]] = {}
    for point in found["points"]:
        groups.setdefault((point["pictures"], point["epsilon"]), []).append(point)
    rows = []
    for (pictures, value), points in groups.items():
        middle = {
            key: sorted(p[key] for p in points)[len(points) // 2] for key in ("degrees", "psnr", "ssim")
        }
        rows.append(
            (
                f"{pictures:,}",
                "no noise" if value is None else f"{value:g}",
                f"{middle['degrees']:.0f}",
                f"{middle['psnr']:.1f}",
                f"{middle['ssim']:.2f}",
            )
        )
    return markdown(("pictures", "epsilon", "degrees from the paired rotation", "PSNR dB", "SSIM"), rows)


def leaks() -> str:
    """What surrogates read of latents."""
    rows = []
    for name in ("ode-1", "ode-0.85", "ode-0.7", "ode-0.5", "ode-0.3", "mixed-1"):
        found = read(f"calibration/leaks/satellite-relief/{name}")
        leak = found["leak"]
        cells = (
            ranged(leak[key], digits)
            for key, digits in (("psnr_read", 1), ("ssim_read", 2), ("re_identified", 2))
        )
        rows.append((found["encoder"], f"{found['depth']:g}", f"{leak['latent_ratio']:.2f}", *cells))
    return markdown(
        ("encoder", "depth", "whiteness", "read, dB", "read, SSIM", "the right one of 169 found"), rows
    )


def membership() -> str:
    """Whether one picture was among those averaged."""
    attacks = read("calibration/membership/relief")["attacks"]
    values = list(dict.fromkeys(one["epsilon"] for one in attacks))
    counts = list(dict.fromkeys(one["pictures"] for one in attacks))
    by = {(one["pictures"], one["epsilon"]): ranged(one["all but one"]["auc"], 3) for one in attacks}
    rows = [(f"{count:,}", *(by[count, value] for value in values)) for count in counts]
    names = ("no noise" if value is None else f"epsilon {value:g}" for value in values)
    return markdown(("pictures averaged", *names), rows)


SHOWN = (
    ("honest latents", "48 evaluations"),
    ("too few evaluations", "4"),
    ("noise and picture", "a = 0.3"),
    ("noise and picture", "a = 0.7"),
    ("latent and picture", "a = 0.3"),
    ("latent and picture", "a = 0.7"),
    ("pixels in another order", "–"),
    ("a quarter of the latent is the picture", "–"),
    ("noise, no latent of any picture", "–"),
    ("the latent of another picture", "–"),
    ("honest sets, near, 12 evaluations", "1024 points"),
    ("raw data", "1 point"),
    ("raw data", "8 points"),
    ("raw data", "64 points"),
    ("raw data", "256 points"),
    ("raw data", "1024 points"),
    ("noise, no latent of any point", "64 points"),
)


def gate() -> str:
    """Shares of all domains together."""
    sums: dict[tuple[str, str], list[int]] = {}
    for path in sorted((JSON / "privacy" / "gate").glob("*.json")):
        for case in json.loads(path.read_text())["cases"]:
            total = sums.setdefault((case["name"], case["strength"] or "–"), [0, 0, 0])
            for place, key in enumerate(("count", "source", "target")):
                total[place] += case[key]
    rows = []
    for name, strength in SHOWN:
        count, source, target = sums[name, strength]
        rows.append(
            (
                f"{name}, {strength}".removesuffix(", –"),
                count,
                f"{source / count:.3f}",
                f"{target / count:.3f}",
            )
        )
    return markdown(("latents", "judged", "refused by the source", "refused by the target"), rows)


def softening() -> str:
    """Levels of noise before encoding."""
    rows = []
    for pair in ("satellite-relief", "brain"):
        for sigma in ("0", "0.01", "0.02", "0.05", "0.1", "0.2"):
            one = read(f"pictures/{pair}/softening-{sigma}")
            latent = one["latent"]
            rows.append(
                (
                    pair if sigma == "0" else "",
                    sigma,
                    f"{latent['std']:.2f}",
                    f"{latent['ratio']:.2f}",
                    f"{one['cycle_psnr']['mean']:.1f}",
                    f"{one['paired']['psnr']:.1f}",
                )
            )
    return markdown(
        ("pair", "softening", "latent's deviation", "whiteness", "round trip dB", "PSNR dB"), rows
    )


SOLVERS = ("ddim-4000-integer", "ddim-200", "alf-48", "rk4-48", "unipc-24", "unipc-48", "unipc-100")


def solvers() -> str:
    """Errors by solver and evaluations."""
    rows = []
    for pair in (
        "moons--checkerboards",
        "concentric-rings--parallel-squares",
        "concentric-squares--parallel-rings",
    ):
        for name in SOLVERS:
            one = read(f"solvers/{pair}/{name}")
            figures = (
                one["cycle"]["median"],
                one["cycle"]["max"],
                one["target_error"]["mean"],
                one["target_error"]["max"],
            )
            title = (
                f"**{one['solver']}, {one['evaluations']}**"
                if name == "unipc-48"
                else f"{one['solver']}, {one['evaluations']:,}"
            )
            rows.append(
                (
                    pair.replace("--", " → ") if name == SOLVERS[0] else "",
                    title,
                    f"{one['cpu_seconds']:.0f}",
                    *(f"{value:.1e}" for value in figures),
                )
            )
    return markdown(
        ("pair", "solver, evaluations", "CPU s", "cycle median", "max", "reference mean", "max"), rows
    )


def models() -> str:
    """Samples of the six models of points."""
    rows = (
        (
            row["domain"],
            f"{row['sliced_w2_mean']:.4f}",
            f"{row['sliced_w2_floor']:.4f}",
            f"{row['latent']['std']:.3f}",
        )
        for row in read("models")["rows"]
    )
    return markdown(("domain", "sliced-W2", "floor", "latent's deviation"), rows)


def tiles() -> str:
    """A crop in tiles."""
    rows = (
        (
            row["model"],
            row["way"],
            f"{row['psnr']:.1f}",
            f"{row['ssim']:.3f}",
            f"{row['edges']:.2f}",
            f"{row['cycle_psnr']:.1f}",
            f"{row['cpu_seconds']:.0f}",
        )
        for row in read("calibration/tiles")
    )
    return markdown(("source's model", "way", "PSNR dB", "SSIM", "edges", "round trip dB", "CPU s"), rows)


def speed() -> str:
    """Every bound, of the long form where it was run."""
    records = {path.name.split(".")[0]: path for path in sorted((JSON / "speed").glob("*.short.json"))}
    records |= {path.stem: path for path in sorted((JSON / "speed").glob("*.json")) if "." not in path.stem}
    rows = []
    for name, path in sorted(records.items()):
        for bound in json.loads(path.read_text())["bounds"]:
            low, high = bound["at_least"], bound["at_most"]
            held = (high is None or bound["value"] <= high) and (low is None or bound["value"] >= low)
            asked = f"at most {high:g}" if high is not None else f"at least {low:g}"
            rows.append((name, bound["what"], f"{bound['value']:.3g}", asked, "" if held else "**missed**"))
    return markdown(("benchmark", "bound of", "measured", "asked", ""), rows)


TABLES: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        promises,
        calibration,
        marks,
        nodes,
        epsilon,
        leaks,
        membership,
        gate,
        softening,
        solvers,
        models,
        tiles,
        speed,
    )
}

if __name__ == "__main__":
    sys.exit(main())

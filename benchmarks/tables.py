"""Writes the tables of the pages from the JSON below docs/benchmarks, between `<!-- table: NAME -->` and its end.

    python -m benchmarks.tables            every page
    python -m benchmarks.tables --check    ends with 1 if a page has another table than its JSON gives

A table is a function that gives rows of JSON; its docstring is the head, and the format of each row. Below it a line
says at which commits its records were measured, and whether the code differs since; `--check` leaves that line out.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import measured
from benchmarks.trust.promises import PROMISES

ROOT = Path(__file__).resolve().parents[1]
JSON = ROOT / "docs" / "benchmarks"
PAGES = (ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
END = "<!-- end of table -->"
Rows = Iterable[Mapping[str, Any]]
USED: list[Mapping[str, Any]] = []  # records of the table that is written


def main() -> int:
    """Write the tables; 1 if one differed and was only checked."""
    stale, check = [], "--check" in sys.argv

    def table(match: re.Match[str]) -> str:
        return filled(match[1], without_line=check)

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = re.sub(rf"<!-- table: (\w+) -->.*?{END}", table, text, flags=re.DOTALL)
        if new != (re.sub(r"^Measured at .*\n\n", "", text, flags=re.MULTILINE) if check else text):
            stale.append(f"{page.relative_to(ROOT)}\n")
            if not check:
                page.write_text(new, encoding="utf-8")
    sys.stdout.write("".join(stale))
    return int(check and bool(stale))


def filled(name: str, *, without_line: bool = False) -> str:
    """A table with its marks."""
    USED.clear()
    head, form = (line.split("|") for line in re.split(r"\n\s*", (TABLES[name].__doc__ or "").strip()))
    lines = [head, ["---"] * len(head), *([_cell(cell, row) for cell in form] for row in TABLES[name]())]
    body = "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)
    records = [one for one in USED if isinstance(one, Mapping)] or [{}]
    line = "" if without_line else f"{measured.line(records, CODE.get(name, measured.CODE))}\n\n"
    return f"<!-- table: {name} -->\n\n{body}\n\n{line}{END}"


def _cell(form: str, row: Mapping[str, Any]) -> str:
    """Return a cell: {psnr~1} and {wrong~1%} are figures with their intervals, where the row has these."""
    for interval in (r"{\1[value]:.\2\3} [{\1[low]:.\2\3}, {\1[high]:.\2\3}]", r"{\1[value]:.\2\3}"):
        typed = re.sub(r"~(\d)}", r"~\1f}", form)
        try:
            return re.sub(r"{([^{}]+)~(\d)([f%])}", interval, typed).format(**row)
        except (KeyError, TypeError):
            continue
    return "–"


def read(name: str) -> Any:
    """Return the record docs/benchmarks/NAME.json, which the table's line names."""
    USED.append(record := json.loads((JSON / f"{name}.json").read_text(encoding="utf-8")))
    return record


def found(pattern: str) -> list[Any]:
    return [read(path.relative_to(JSON).with_suffix("").as_posix()) for path in sorted(JSON.glob(pattern))]


def large() -> Rows:
    """way | PSNR dB | SSIM | partner | feature distance | wrong pixels | CPU s a picture
    {way} | {psnr~1} | {ssim~3} | {partner~2} | {frechet_early~0} | {wrong~1%} | {cpu_seconds:.2f}"""
    rows: Rows = read("pictures/large")["rows"]
    return rows


def promises() -> Rows:
    """promise | by | on | tests | cases | failed | did not run
    {promise} | make {by} | {date} | {tests} | {cases:,} | {failed} | {skipped}"""
    for which in ("trust", "chaos"):
        run = read(f"trust/{which}")
        for name, sentence in PROMISES.items():
            if mine := [test for test in run["rows"] if test["promise"] == name]:
                sums = {key: sum(test[key] for test in mine) for key in ("cases", "failed", "skipped")}
                yield {**run, "promise": sentence, "by": which, "tests": len(mine), **sums}
    fuzz = read("trust/fuzz")
    runs, crashes = (sum(one[key] for one in fuzz["rows"]) for key in ("executions", "crashes"))
    yield {**fuzz, "promise": "Parsers under atheris", "by": "fuzz", "tests": len(fuzz["rows"])} | {
        "cases": runs, "failed": crashes, "skipped": 0
    }  # fmt: skip


LINES = {
    "histogram": "histogram matching",
    "plain": "as shipped",
    "rotation-alone": "the rotation alone",
    "calibrated": "**rotation without pairs**",
    "rotation-share": "rotation, share 0.75, temperature 0.9",
    "rotation-dial": "the same, and blend 0.3",
    "map-alone": "the colour map alone",
    "retrained": "**source retrained**",
    "retrained-cool": "the same, share 0.75, temperature 0.9",
    "retrained-dial": "the same, and blend 0.3",
}


def calibration() -> Rows:
    """pair | way | PSNR dB | SSIM | partner | feature distance | round trip dB
    {pair} | {way} | {psnr~1} | {ssim~2} | {partner~2} | {frechet_early~0} | {cycle_psnr~1}"""
    trained, shipped = (read(f"calibration/{name}")["rows"] for name in ("retrained", "table"))
    for one, back in (("satellite", "relief"), ("satellite", "etopo")):
        for pair in (f"{one}-{back}", f"{back}-{one}"):
            for name, way in LINES.items():
                if "etopo" in pair and name not in {"histogram", "plain"}:  # its rotation is refused
                    continue
                seeds, once = (
                    [row for row in rows if (row["pair"], row["name"]) == (pair, name)]
                    for rows in (trained, shipped)
                )
                if figures := _mean(seeds or once):
                    yield {**figures, "pair": pair if name == "histogram" else "", "way": way}


def _mean(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several seeds."""
    mean: dict[str, Any] = {}
    for key, value in (figures[0] if figures else {}).items():
        if isinstance(value, float):
            mean[key] = statistics.mean(one[key] for one in figures)
        elif isinstance(value, dict) and "low" in value:
            parts = [one[key] for one in figures if key in one]
            mean[key] = {
                side: statistics.mean(part[side] for part in parts) for side in ("value", "low", "high")
            }
    return mean


def marks() -> Rows:
    """pair, calibration, share | wrong pixels | bad pictures | marked | precision | recall | AUC
    {pair}, {state}, {share:g}{few} | {wrong~0%} | {bad} | {by_classes[marked]} | {by_classes[precision]~2} | {by_classes[recall]~2} | {auc~2}"""  # noqa: E501
    for row in read("pictures/marks")["rows"]:
        few = "" if row["evaluations"] == 24 else f", {row['evaluations']} evaluations"
        if "brain" not in row["pair"]:  # whose T2 is nearly a curve of its T1
            yield {**row, "few": few}


def nodes() -> Rows:
    """way | PSNR dB | SSIM | partner | feature distance | wrong | round trip dB | bytes a picture, at most
    {way} | {psnr~1} | {ssim~3} | {partner~2} | {frechet_early~0} | {wrong~1%} | {cycle_psnr~1} | {wire_bytes:,}"""
    for row in read("calibration/nodes")["rows"]:
        if "wire_bytes" not in row:  # no node made it: in the table `calibration` too
            continue
        way = (
            row["way"]
            .replace(", share", ", share .75, temperature .9")
            .replace(", dial", ", the same, blend .3")
        )
        yield {**row, "way": way}


def epsilon() -> Rows:
    """pictures | epsilon | mirrored of nine draws | degrees from the paired rotation | SSIM
    {what} | {epsilon} | {mirrored} | {degrees:.0f} | {ssim~2}"""
    for row in read("calibration/epsilon")["rows"]:
        if row.get("way") != "histogram matching":  # as in `calibration`
            what = row["way"] if "way" in row else f"{row['pictures']:,}"
            yield {"epsilon": "–", "mirrored": "–", **row, "what": what}


def leaks() -> Rows:
    """share | depth | whiteness | read, dB | read, SSIM | the right one of 169 found
    {share} | {depth} | {whiteness} | {psnr_read~1} | {ssim_read~2} | {re_identified~2}"""
    for row in read("calibration/leaks")["rows"]:
        parts = ("no latent", "–", "–")
        if row["share"] is not None:
            parts = f"{row['share']:g}", f"{row['depth']:g}", f"{row['latent_ratio']:.2f}"
        yield {**row, **dict(zip(("share", "depth", "whiteness"), parts, strict=True))}


def lesions() -> Rows:
    """head | softening noise | other slice: 1 mm away | other slice: the same, without the lesion
    {head} | {words} | {next~2} | {same~2}"""
    for row in read("calibration/lesions")["rows"]:
        yield {**row, "words": {"own": "one for each slice", "one": "**one for all**"}[row["noise"]]}


def membership() -> Rows:
    """pictures averaged | no noise | epsilon 8 | epsilon 1 | epsilon 0.1
    {pictures:,} | {no~3} | {e8~3} | {e1~3} | {e01~3}"""
    names = {None: "no", 8.0: "e8", 1.0: "e1", 0.1: "e01"}
    for pictures, group in groupby(read("calibration/membership")["rows"], lambda one: one["pictures"]):
        yield {"pictures": pictures, **{names[one["epsilon"]]: one["auc"] for one in group}}


SHOWN = """
honest latents, 48 evaluations; noise and picture, a = 0.3; noise and picture, a = 0.7
latent and picture, a = 0.3; latent and picture, a = 0.7; pixels in another order
a quarter of the latent is the picture; noise, no latent of any picture
honest sets, near, 12 evaluations, 1024 points; raw data, 1 point; raw data, 8 points
raw data, 1024 points
"""


def gate() -> Rows:
    """latents | judged | refused by the source | refused by the target
    {name} | {count} | {source~3} | {target~3}"""
    rows = {row["name"]: row for row in read("privacy/power")["rows"]}
    return [rows[name] for name in re.split(r"[;\n] ?", SHOWN.strip())]


def solvers() -> Rows:
    """pair | solver | evaluations | CPU s | cycle median | cycle max | reference mean | reference max
    {pair} | {solver} | {evaluations:,} | {cpu_seconds:.0f} | {cycle[median]:.1e} | {cycle[max]:.1e} | {target_error[mean]:.1e} | {target_error[max]:.1e}"""  # noqa: E501
    for row in read("points/solvers")["rows"]:
        pair = f"{row['source']} → {row['target']}" if row["solver"] == "ddim" else ""
        yield {**row, "pair": pair}


def models() -> Rows:
    """domain | sliced-W2 | floor | latent's deviation
    {domain} | {sliced_w2~4} | {sliced_w2_floor:.4f} | {latent_std:.3f}"""
    rows: Rows = read("points/models")["rows"]
    return rows


def scenes() -> Rows:
    """way | wrong pixels | PSNR dB | SSIM | differs from the map | marked | CPU s
    {way} | {wrong~1%} | {psnr~1} | {ssim~3} | {differs~1%} | {marked} of {scenes} | {cpu_seconds:.0f}"""
    rows: Rows = read("calibration/scenes")["rows"]
    return rows


def scans() -> Rows:
    """pair | way | MAE | PSNR dB | MS-SSIM
    {pair} | {way} | {MAE} | {PSNR dB} | {MS-SSIM}"""
    return [row for row in read("pictures/scans")["rows"] if "MAE" in row]


def heads() -> Rows:
    """model | pictures | round trip dB, mean | median | worst | below 30 dB | refused
    {model} | {pictures} of {set} | {mean~1} | {median:.1f} | {least:.1f} | {marked_by_round_trip} | {refused}"""
    rows: Rows = read("pictures/heads")["rows"]
    return rows


def flicker() -> Rows:
    """pair | noise | flicker | of one draw | round trip dB | of one draw | latents correlate
    {pair} | {noise} | {flicker~1} | {flicker[least]:.1f} to {flicker[most]:.1f} | {round_trip~1} | {round_trip[least]:.1f} to {round_trip[most]:.1f} | {correlation~2}"""  # noqa: E501
    for row in read("pictures/flicker")["rows"]:
        first = not row.get("shared", True)
        noise = "**one for all**" if row.get("shared") else "one for each slice"
        pair = f"{row['source']}-{row['target']}" if first else ""
        yield {**row, "pair": pair, "noise": noise if row["kind"] == "slices" else "models of volumes"}


def reading() -> Rows:
    """slices | noise | from one latent, dB | from all | with the model, from one | from all | and a known slice
    {source} | {noise} | {latent~1} | {mean~1} | {model~1} | {study~1} | {known~1}"""
    for row in read("pictures/reading")["rows"]:
        noise = "**one for all**" if row["shared"] else "one for each slice"
        yield {**row, "noise": noise, "study": row["model, study"], "known": row["model, known"]}


def dial() -> Rows:
    """pair, calibration | setting | PSNR dB | SSIM | feature distance | sharpness | wrong | read by 512 pairs, dB
    {what} | {words} | {psnr~1} | {ssim~3} | {frechet_early~0} | {sharpness~2} | {wrong~1%} | {leak~1}"""
    forms = {
        "proposed": "**share {share:g}, temperature {temperature:g}, blend {blend:g}**",
        "depth": "depth {depth:g}",
        "depth and blend": "depth {depth:g}, blend {blend:g}",
    }
    rows = read("calibration/dial")["rows"]
    for row in rows:
        if (
            row["setting"] == "histogram matching" or "brain" in row["pair"]
        ):  # in `calibration`; as in `marks`
            continue
        what = f"{row['pair']}, {row['calibration']}" if row["setting"] == "the map alone" else ""
        yield {**row, "what": what, "words": forms.get(row["setting"], row["setting"]).format(**row)}


def speed() -> Rows:
    """benchmark | bound of | measured | asked |
    {name} | {what} | {figures} | {asked} | {mark}"""
    for path in sorted((JSON / "speed").glob("*.json")):
        bounds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in read(f"speed/{path.stem}")["rows"]:
            if "held" in row:
                most, least = row.get("at_most"), row.get("at_least")
                asked = f"at least {least:g}" if most is None else f"at most {most:g}"
                what = re.sub(r"the (source|target)\b", "source, target", row["what"])
                bounds.setdefault((what, asked), []).append(row)
        for number, ((what, asked), rows) in enumerate(bounds.items()):
            figures = ", ".join(f"{row['median']:.3g}" for row in rows)
            mark = "" if all(row["held"] for row in rows) else "**missed**"
            name = "" if number else path.stem
            yield {"name": name, "what": what, "figures": figures, "asked": asked, "mark": mark}


CODE: dict[str, tuple[str, ...]] = dict.fromkeys(("solvers", "models"), measured.MODELS)
CODE |= dict.fromkeys(("promises", "speed"), measured.PRODUCT)
CODE |= dict.fromkeys(("dial", "leaks", "reading"), (*measured.CODE, "ddib_fed/lab"))
"""What a table measures, where it is not `measured.CODE`."""
TABLES: dict[str, Callable[[], Rows]] = {
    each.__name__: each
    for each in (
        *(promises, calibration, marks, nodes, epsilon, leaks, lesions, membership, gate),
        *(solvers, models, scenes, scans, heads, flicker, reading, large, dial, speed),
    )
}

if __name__ == "__main__":
    sys.exit(main())

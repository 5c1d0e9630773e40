"""Writes the tables of the pages from the JSON below docs/benchmarks, between `<!-- table: NAME -->` and its end.

    python -m benchmarks.tables            every page
    python -m benchmarks.tables --check    ends with 1 if a page has another table than its JSON gives

A table is a function that gives rows of JSON; its docstring is the head, and the format of each row.
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

from benchmarks.trust.promises import PROMISES

ROOT = Path(__file__).resolve().parents[1]
JSON = ROOT / "docs" / "benchmarks"
PAGES = (ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
END = "<!-- end of table -->"
Rows = Iterable[Mapping[str, Any]]


def main() -> int:
    """Write the tables; 1 if one differed and was only checked."""
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = re.sub(rf"<!-- table: (\w+) -->.*?{END}", lambda found: filled(found[1]), text, flags=re.DOTALL)
        if new != text:
            stale.append(f"{page.relative_to(ROOT)}\n")
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    sys.stdout.write("".join(stale))
    return int("--check" in sys.argv and bool(stale))


def filled(name: str) -> str:
    """A table with its marks."""
    head, form = (line.split("|") for line in re.split(r"\n\s*", (TABLES[name].__doc__ or "").strip()))
    lines = [head, ["---"] * len(head), *([_cell(cell, row) for cell in form] for row in TABLES[name]())]
    body = "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)
    return f"<!-- table: {name} -->\n\n{body}\n\n{END}"


def _cell(form: str, row: Mapping[str, Any]) -> str:
    # {psnr~1}: a figure with its interval
    form = re.sub(r"{([^{}]+)~(\d)}", r"{\1[value]:.\2f} [{\1[low]:.\2f}, {\1[high]:.\2f}]", form)
    try:
        return form.format(**row)
    except (KeyError, TypeError):
        return "–"


def read(name: str) -> Any:
    return json.loads((JSON / f"{name}.json").read_text(encoding="utf-8"))


def found(pattern: str) -> list[Any]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(JSON.glob(pattern))]


def large() -> Rows:
    """way | PSNR dB | SSIM | partner | FD | wrong pixels | CPU s a picture
    {way} | {psnr~2} | {ssim~3} | {partner~2} | {frechet_early~1} | {wrong[value]:.1%} | {cpu_seconds:.2f}"""
    yield from read("pictures/large")


def promises() -> Rows:
    """promise | by | on | tests | cases | failed | did not run
    {promise} | make {by} | {date:.10} | {tests} | {cases:,} | {failed} | {skipped}"""
    for which in ("trust", "chaos"):
        run = read(f"trust/{which}")
        for name, sentence in PROMISES.items():
            if mine := [test for test in run["tests"] if test["promise"] == name]:
                sums = {key: sum(test[key] for test in mine) for key in ("cases", "failed", "skipped")}
                yield {**run, "promise": sentence, "by": which, "tests": len(mine), **sums}
    fuzz = read("trust/fuzz")
    runs, crashes = (sum(one[key] for one in fuzz["parsers"]) for key in ("executions", "crashes"))
    yield {**fuzz, "promise": "Parsers under atheris", "by": "fuzz", "tests": len(fuzz["parsers"])} | {
        "cases": runs, "failed": crashes, "skipped": 0
    }  # fmt: skip


LINES = {
    "histogram": "histogram matching",
    "plain": "as shipped",
    "rotation-alone": "the rotation alone, no model",
    "calibrated": "**rotation without pairs**",
    "rotation-share": "rotation, share 0.75, temperature 0.9",
    "rotation-dial": "rotation, share 0.75, temperature 0.9, blend 0.3",
    "map-alone": "the colour map alone, no model",
    "tone": "tone of 8 pairs alone, no model",
    "retrained": "**source retrained on mapped pictures**",
    "retrained-0.7": "the same, depth .7",
    "retrained-cool": "the same, share 0.75, temperature 0.9",
    "retrained-dial": "the same, and blend 0.3",
}
SEEDS = {
    "calibrated": "rotation-1", "rotation-alone": "rotation-alone", "rotation-share": "rotation-share",
    "rotation-dial": "rotation-dial",
    "map-alone": "colour-map-alone", "retrained": "colour-map-1", "retrained-cool": "colour-map-share",
    "retrained-dial": "colour-map-dial",
}  # fmt: skip
"""Lines that benchmarks.calibration.unpaired measures, by the end of its file's name."""
DEPTHS = {"tone": None, "retrained": 1.0, "retrained-0.7": 0.7}
"""Lines that benchmarks.calibration.anchors measures, by depth; None for the map alone."""


def calibration() -> Rows:
    """pair | way | PSNR dB | SSIM | partner | feature distance | round trip dB
    {pair} | {way} | {psnr~1} | {ssim~2} | {partner[value]:.2f} | {frechet_early[value]:.0f} | {cycle_psnr[value]:.1f}"""  # noqa: E501
    for one, back in (("satellite", "relief"), ("satellite", "etopo"), ("brain-t1", "brain-t2")):
        for pair in (f"{one}-{back}", f"{back}-{one}"):
            for name, way in LINES.items():
                if figures := _mean(_measured(pair, name)):
                    yield {"pair": pair if name == "histogram" else "", "way": way, **figures}


def _measured(pair: str, name: str) -> list[dict[str, Any]]:
    """Figures of a line, one a seed where it was trained, else of the table's own JSON."""
    seeds = [one["figures"] for one in found(f"calibration/unpaired/{pair}-[0-9]-{SEEDS.get(name)}.json")]
    for one in found(f"calibration/anchors/{pair}-[0-9].json") if name in DEPTHS else ():
        runs = [run for run in one["runs"] if run["depth"] == DEPTHS[name] and run["share"] == 1.0]
        seeds += [one["map_alone"]] if DEPTHS[name] is None else runs[:1]
    return seeds or [one["figures"] for one in found(f"calibration/table/{pair}/{name}.json")]


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
    """pair, calibration, share | wrong pixels | bad pictures | by structure: found | by classes: marked | precision | recall | AUC
    {pair}, {state}, {share:g}{few} | {wrong:.0%} | {bad} | {by_structure[recall]:.0%} | {by_classes[marked]} | {by_classes[precision]:.2f} | {by_classes[recall]:.2f} | {auc:.2f}"""  # noqa: E501
    for row in read("marks"):
        few = "" if row["evaluations"] == 24 else f", {row['evaluations']} evaluations"
        yield {**row, "few": few}


def nodes() -> Rows:
    """way | PSNR dB | SSIM | partner | feature distance | wrong | round trip dB | bytes a picture, at most
    {way} | {psnr~1} | {ssim[value]:.3f} | {partner[value]:.2f} | {frechet_early[value]:.0f} | {wrong:.1%} | {cycle_psnr[value]:.1f} | {wire_bytes[most]:,}"""  # noqa: E501
    measured = read("calibration/nodes/satellite-relief")
    for name, run in measured["runs"].items():
        kind = name.partition(",")[0]
        if name in measured["alone"]:
            yield {"way": f"the {kind} alone, no model", **measured["alone"][kind]}
        yield {"way": name.replace("share", "share .75, temperature .9").replace("dial", "the same, blend .3"),
               **run["figures"], **run}  # fmt: skip


def epsilon() -> Rows:
    """pictures | epsilon | degrees from the paired rotation | PSNR dB | SSIM
    {pictures:,} | {noise} | {degrees:.0f} | {psnr:.1f} | {ssim:.2f}"""
    points = read("calibration/epsilon/satellite-relief")["points"]
    for (pictures, value), group in groupby(points, lambda one: (one["pictures"], one["epsilon"])):
        draws = list(group)
        middle = {key: statistics.median(one[key] for one in draws) for key in ("degrees", "psnr", "ssim")}
        yield {"pictures": pictures, "noise": "no noise" if value is None else value, **middle}


def leaks() -> Rows:
    """share | depth | whiteness | read, dB | read, SSIM | the right one of 169 found
    {share:g} | {depth:g} | {leak[latent_ratio]:.2f} | {leak[psnr_read]~1} | {leak[ssim_read]~2} | {leak[re_identified]~2}"""  # noqa: E501
    rows = found("calibration/leaks/satellite-relief/*.json")
    return sorted(rows, key=lambda one: (-one["share"], -one["depth"]))


def lesions() -> Rows:
    """softening noise | other slice: 1 mm away | other slice: the same, without the lesion
    {noise} | {next[0]} and {next[1]} of {pairs} | {same[0]} and {same[1]} of {pairs}"""
    heads = read("calibration/lesions")["heads"]
    for noise, words in (("own", "one for each slice"), ("one", "**one for all**")):
        found = {other: [head[noise][other] for head in heads] for other in ("next", "same")}
        yield {"noise": words, "pairs": heads[0]["pairs"], **found}


def membership() -> Rows:
    """pictures averaged | no noise | epsilon 8 | epsilon 1 | epsilon 0.1
    {pictures:,} | {no~3} | {e8~3} | {e1~3} | {e01~3}"""
    names = {None: "no", 8.0: "e8", 1.0: "e1", 0.1: "e01"}
    for pictures, group in groupby(
        read("calibration/membership/relief")["attacks"], lambda one: one["pictures"]
    ):
        yield {"pictures": pictures, **{names[one["epsilon"]]: one["all but one"]["auc"] for one in group}}


SHOWN = """
honest latents, 48 evaluations; too few evaluations, 4; noise and picture, a = 0.3; noise and picture, a = 0.7
latent and picture, a = 0.3; latent and picture, a = 0.7; pixels in another order
a quarter of the latent is the picture; noise, no latent of any picture; the latent of another picture
honest sets, near, 12 evaluations, 1024 points; raw data, 1 point; raw data, 8 points; raw data, 64 points
raw data, 256 points; raw data, 1024 points; noise, no latent of any point, 64 points
"""


def gate() -> Rows:
    """latents | judged | refused by the source | refused by the target
    {name} | {count} | {source:.3f} | {target:.3f}"""
    cases = [case for domain in found("privacy/gate/*.json") for case in domain["cases"]]
    for name in re.split(r"[;\n] ?", SHOWN.strip()):
        mine = [case for case in cases if ", ".join(filter(None, (case["name"], case["strength"]))) == name]
        count, source, target = (sum(case[key] for case in mine) for key in ("count", "source", "target"))
        yield {"name": name, "count": count, "source": source / count, "target": target / count}


def solvers() -> Rows:
    """pair | solver | evaluations | CPU s | cycle median | cycle max | reference mean | reference max
    {source} → {target} | {solver} | {evaluations:,} | {cpu_seconds:.0f} | {cycle[median]:.1e} | {cycle[max]:.1e} | {target_error[mean]:.1e} | {target_error[max]:.1e}"""  # noqa: E501
    names = ("ddim-4000-integer", "unipc-24", "unipc-48", "unipc-100")
    return [
        read(f"solvers/{pair.name}/{name}") for pair in sorted((JSON / "solvers").iterdir()) for name in names
    ]


def models() -> Rows:
    """domain | sliced-W2 | floor | latent's deviation
    {domain} | {sliced_w2_mean:.4f} | {sliced_w2_floor:.4f} | {latent[std]:.3f}"""
    rows: Rows = read("models")["rows"]
    return rows


def scenes() -> Rows:
    """way | wrong pixels | sea as land | PSNR dB | SSIM | differs from the map | marked | CPU s
    {way} | {wrong_mean:.1%} | {sea_as_land:.1%} | {psnr:.1f} | {ssim:.3f} | {differing:.1%} | {marked} of {scenes} | {cpu_seconds:.0f}"""  # noqa: E501
    for row in read("calibration/scenes"):
        yield {**row, "differing": statistics.mean(row["differs"])}


def heads() -> Rows:
    """model | pictures | round trip dB, median | worst | below 30 dB | refused
    {model} | {pictures} of {set} | {median:.1f} | {least:.1f} | {marked_by_round_trip} | {refused}"""
    rows: Rows = read("pictures/heads")
    return rows


def flicker() -> Rows:
    """pair | noise | flicker | round trip dB | latents correlate | read from one, dB | from all | with the model, from one | from all | and a known slice
    {pair} | {noise} | {flicker~1} | {round_trip~1} | {correlation[value]:.2f} | {latent[value]:.1f} | {mean~1} | {model[value]:.1f} | {study[value]:.1f} | {known[value]:.1f}"""  # noqa: E501
    for row in read("pictures/flicker"):
        name = {"pair": f"{row['source']}-{row['target']}", "noise": "one for each slice"}
        if row["kind"] == "volumes":
            yield {**row, "pair": "", "noise": "models of volumes"}
            continue
        if row["shared"]:
            name = {"pair": "", "noise": "**one for all**"}
        reads = {key.rpartition(" ")[2]: value for key, value in row["read"].items() if key != "known"}
        yield {**row, **reads, **name}


def dial() -> Rows:
    """pair, calibration | setting | PSNR dB | SSIM | partner | feature distance | sharpness | wrong | read by 512 pairs, dB
    {what} | {setting} | {psnr~1} | {ssim[value]:.3f} | {partner[value]:.2f} | {frechet_early[value]:.0f} | {sharpness:.2f} | {wrong:.1%} | {leak:.1f}"""  # noqa: E501
    for one in found("calibration/dial/*.json"):
        leaks = {each["share"]: each["leak"] for each in one["shares"]}
        yield {"what": f"{one['pair']}, {one['calibration']}", "setting": "the map alone", **one["map_alone"]}
        best = one["proposed"]
        own = [each for each in one["at_the_proposed_share"] if best.items() <= each.items()]
        for row in (*one["shares"][:3], *own):
            setting = f"share {row['share']:g}"
            if row in own:
                setting = f"**{setting}, temperature {row['temperature']:g}, blend {row['blend']:g}**"
            yield {"what": "", "setting": setting, **row, "leak": leaks[row["share"]]}
        for row in one["depths"][2:]:
            yield {"what": "", "setting": f"depth {row['depth']:g}, blend {row['blend']:g}", **row}


def speed() -> Rows:
    """benchmark | bound of | measured | asked |
    {name} | {what} | {value:.3g} | {asked} | {held}"""
    long = {path.stem: path for path in (JSON / "speed").glob("*.json") if "." not in path.stem}
    short = {path.name.split(".")[0]: path for path in (JSON / "speed").glob("*.short.json")}
    for name, path in sorted((short | long).items()):
        for bound in json.loads(path.read_text(encoding="utf-8"))["bounds"]:
            low, high = bound["at_least"], bound["at_most"]
            held = (high is None or bound["value"] <= high) and (low is None or bound["value"] >= low)
            asked = f"at least {low:g}" if high is None else f"at most {high:g}"
            yield {"name": name, **bound, "asked": asked, "held": "" if held else "**missed**"}


TABLES: dict[str, Callable[[], Rows]] = {
    each.__name__: each
    for each in (
        *(promises, calibration, marks, nodes, epsilon, leaks, lesions, membership, gate),
        *(solvers, models, scenes, heads, flicker, large, dial, speed),
    )
}

if __name__ == "__main__":
    sys.exit(main())

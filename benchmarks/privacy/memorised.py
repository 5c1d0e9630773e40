"""Copies that a target with `[policy] memorised` detects, and honest translations that it refuses: docs/privacy.md.

    python -m benchmarks.privacy.memorised --short     some minutes of one core, then write the tables
    python -m benchmarks.privacy.memorised             the same with more pictures, about an hour
    python -m benchmarks.privacy.memorised --report    only the tables

Copies are training pictures of the target's model, changed. Honest translations are of the source's test and held-out
pictures, which show other places than the target's. The long form has more of them than there are, and adds training
pictures of the source. The heads have too few pictures. Intervals are Clopper and Pearson's, 95 %. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from scipy.stats import beta

from benchmarks.pages import between, markdown
from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.files import parse_json, write_file, write_json
from ddib_fed.metrics.attacks.copies import Floats, TrainingRows, reduced
from ddib_fed.metrics.attacks.training_index import TrainingIndex, distances, parse_index
from ddib_fed.models.shipped import pretrained
from ddib_fed.runs.privacy.indexing import IndexRequest, build_index

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "benchmarks" / "privacy" / "memorised"
PAGE = ROOT / "docs" / "privacy.md"
WRITER = "benchmarks/privacy/memorised.py"
PAIRS = (("satellite", "relief"), ("satellite", "etopo"))
SETTINGS = SolverSettings(evaluations=24)
LONG, SHORT = (2_000, 4_600), (500, 400)
"""Copies of each change, and honest translations of each pair."""
AT_ONCE = 32
TIMED_ROWS, TIMED = 20_000, 200
SEED = 17


def _noise(sigma: float) -> Callable[[Floats], Floats]:
    return lambda x: x + sigma * np.random.default_rng(SEED).standard_normal(x.shape, dtype=np.float32)


def _shifted(pixels: int) -> Callable[[Floats], Floats]:
    """To the right; the left edge is repeated."""
    return lambda x: np.pad(x[..., :-pixels], ((0, 0), (0, 0), (0, 0), (pixels, 0)), mode="edge")


def _cropped(x: Floats) -> Floats:
    """The middle seven eighths, enlarged."""
    edge = x.shape[-1] // 16
    middle = torch.from_numpy(np.ascontiguousarray(x[:, :, edge:-edge, edge:-edge]))
    found: Floats = torch.nn.functional.interpolate(middle, size=x.shape[2:], mode="bilinear").numpy()
    return found


def _halves(x: Floats) -> Floats:
    """The left half of one picture beside the right half of another."""
    half = x.shape[-1] // 2
    return np.concatenate([x[..., :half], np.roll(x, 1, axis=0)[..., half:]], axis=-1)


CHANGES: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {
        "itself": lambda x: x,
        "noise of sigma .02": _noise(0.02),
        "noise of sigma .05": _noise(0.05),
        "noise of sigma .1": _noise(0.1),
        "mirrored left to right": lambda x: x[..., ::-1],
        "upside down": lambda x: x[:, :, ::-1],
        "shifted by 1 pixel": _shifted(1),
        "shifted by 2 pixels": _shifted(2),
        "brighter by .02": lambda x: x + np.float32(0.02),
        "brighter by .05": lambda x: x + np.float32(0.05),
        "brighter by .1": lambda x: x + np.float32(0.1),
        "contrast 0.9": lambda x: x * np.float32(0.9),
        "middle seven eighths, enlarged": _cropped,
        "left half, beside another right half": _halves,
    }
)


def main() -> int:
    """Measure what was asked, then write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", nargs=2, action="append", metavar=("SOURCE", "TARGET"))
    parser.add_argument("--short", action="store_true", help="fewer pictures")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    for source, target in () if given.report else given.pair or PAIRS:
        found = measured(source, target, *(SHORT if given.short else LONG))
        write_json(OUT / f"{source}-{target}.json", found)
        print(found, flush=True)
    text = PAGE.read_text(encoding="utf-8")
    there = {
        f"{a} → {b}": parse_json(f.read_bytes()) for a, b in PAIRS if (f := OUT / f"{a}-{b}.json").exists()
    }
    write_file(PAGE, between(text, "memorised", WRITER, tables(there)).encode())
    return 0


def measured(source: str, target: str, copies: int, honest: int) -> dict[str, Any]:
    """Of one pair: the threshold, what is detected and refused, and the time of a check."""
    began = time.process_time()
    made = build_index(pretrained(target), IndexRequest())
    index = parse_index(made.file, target)
    train = load_shipped(target).train
    copied = train[np.random.default_rng(SEED).permutation(len(train))[:copies]]
    given = translations(source, target, honest)
    least = distances(given, index.rows)
    tried = {name: _share(_copied(index, change(copied))) for name, change in CHANGES.items()}
    return {
        "threshold": made.facts.threshold,
        "pictures": made.facts.pictures,
        "held_out": made.facts.held_out,
        "held_out_nearest": float(made.held_out.min()),
        "caught": tried,
        "honest": _share(least < made.facts.threshold),
        "honest_nearest": float(least.min()),
        "honest_at_held_out": _share(least < 2 * made.facts.threshold),
        "ms": _timed(train, given, made.facts.threshold),
        "megabytes": len(made.file) / 1e6,
        "cpu_seconds": time.process_time() - began,
    }


def _copied(index: TrainingIndex, pictures: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    clipped = np.ascontiguousarray(np.clip(pictures, -1, 1))
    found = distances(clipped, index.rows, within=index.facts.threshold)
    copied: np.ndarray[Any, np.dtype[np.bool_]] = found < index.facts.threshold
    return copied


def translations(source: str, target: str, count: int) -> Floats:
    """Translations of the source's test pictures, and of further ones, spread evenly: (count, C, H, W) in [-1, 1].

    These are held-out pictures as far as there are enough.
    """
    there, back = DomainModel(pretrained(source)), DomainModel(pretrained(target))
    own = load_shipped(source)
    wanted = max(0, count - len(own.test))
    enough = wanted <= len(own.held_out)
    others = own.held_out if enough else np.concatenate([own.held_out, own.train])
    which = np.linspace(0, len(others) - 1, min(wanted, len(others))).astype(int)
    samples = np.concatenate([own.test, others[which]])[:count]
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for start in range(0, len(samples), AT_ONCE):
        x = there.tensor(there.normalise(samples[start : start + AT_ONCE]))
        noise = torch.randn(x.shape, generator=generator).numpy()
        x = there.softened(x, there.manifest.soften_sigma, noise)
        z = integrate(there.plan(SETTINGS).encoder(x, there.condition(None, len(x))), there.denoiser())
        y = integrate(back.plan(SETTINGS).decoder(z, back.condition(None, len(z))), back.denoiser())
        found.append(np.clip(back.denormalise(y.numpy()), -1, 1).astype(np.float32))
    return np.concatenate(found)


def _timed(train: Floats, given: Floats, threshold: float) -> dict[str, float]:
    """Milliseconds of CPU to check one picture against 20,000 training pictures."""
    rows = TrainingRows(reduced(np.resize(train, (TIMED_ROWS, *train.shape[1:]))))
    found: dict[str, list[float]] = {"threshold": [], "all": []}
    for picture in given[:TIMED, None]:
        for name, within in (("threshold", threshold), ("all", np.inf)):
            began = time.thread_time()
            distances(picture, rows, within=within)
            found[name].append(1e3 * (time.thread_time() - began))
    return {
        "median": float(np.median(found["threshold"])),
        "p99": float(np.quantile(found["threshold"], 0.99)),
        "without_bound": float(np.median(found["all"])),
    }


def _share(hits: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float]:
    """With the interval of Clopper and Pearson."""
    count, of = int(hits.sum()), len(hits)
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, of - count + 1))
    high = 1.0 if count == of else float(beta.ppf(0.975, count + 1, of - count))
    return {"count": count, "of": of, "share": count / of, "low": low, "high": high}


def tables(there: Mapping[str, Mapping[str, Any]]) -> str:
    """Detection, then the rest; a column for each pair."""
    if not there:
        return ""
    columns = tuple(there)
    caught = tuple((name, *(_said(each["caught"][name], 1) for each in there.values())) for name in CHANGES)
    rest: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "copies of each change": lambda f: f"{f['caught']['itself']['of']:,}",
        "training pictures; held-out pictures, which set the threshold": lambda f: (
            f"{f['pictures']:,}; {f['held_out']:,}"
        ),
        "threshold; distance of the nearest held-out picture": lambda f: (
            f"{f['threshold']:.3f}; {f['held_out_nearest']:.3f}"
        ),
        "honest translations refused": lambda f: (
            f"{f['honest']['count']} of {f['honest']['of']:,}: {_said(f['honest'], 2)}"
        ),
        "distance of the nearest honest translation": lambda f: f"{f['honest_nearest']:.3f}",
        "refused at twice the threshold": lambda f: _said(f["honest_at_held_out"], 2),
        "CPU of a check against 20,000 training pictures: median, 99th percentile; without the bound": lambda f: (
            f"{f['ms']['median']:.2f}, {f['ms']['p99']:.2f}; {f['ms']['without_bound']:.1f} ms"
        ),
        "size of the index": lambda f: f"{f['megabytes']:.0f} MB",
        "CPU of this benchmark": lambda f: f"{f['cpu_seconds']:.0f} s",
    }
    others = tuple((name, *(say(each) for each in there.values())) for name, say in rest.items())
    return "\n\n".join(
        [
            markdown(("a training picture, changed, is detected", *columns), caught),
            markdown(("", *columns), others),
        ]
    )


def _said(share: Mapping[str, float], digits: int) -> str:
    value, low, high = (100 * share[name] for name in ("share", "low", "high"))
    return f"{value:.{digits}f} % ({low:.{digits}f}–{high:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())

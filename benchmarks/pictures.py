"""How well the shipped pairs of picture domains translate, on ground that no model was trained on.

    python benchmarks/pictures.py                                measure what is missing, then write pages and pictures
    python benchmarks/pictures.py --pairs brain --only softening --count 16 --evaluations 24      a look, in minutes
    python benchmarks/pictures.py --models DIR --out /tmp/look   bundles DIR/satellite, ...; pages elsewhere
    python benchmarks/pictures.py --report                       only pages, from what has been measured

    quality     the whole test part by the models as they ship: pairs, retrieval, features, structure, samples
    softening   several noise levels: latents, round trip, translation
    depth       partial depth: what structure it keeps, and what of the picture is left in the latent

One JSON for each measurement under OUT/benchmarks/pictures; one that is there for the same models and settings is not
measured again, and translations are kept in build/pictures, so that new figures of them take seconds. One
thread, float32. Every figure has the CPU seconds that it took beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddib_fed.bridge.arrays import Asked, Stages, draw_samples, translate_array
from ddib_fed.bridge.local_party import LocalParty, open_party
from ddib_fed.datasets.shipped import SHIPPED, ShippedPictures, load_shipped, shipped_clusters
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.files import write_json
from ddib_fed.metrics import features, retrieval
from ddib_fed.metrics.judgement import Beside, Domain, judge
from ddib_fed.metrics.latents import whiteness
from ddib_fed.metrics.pictures import compare, mse, psnr, spread
from ddib_fed.metrics.structure import Thresholds, calibrate, structure
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.shipped import pretrained
from ddib_fed.reports.sheets import Stage, latent_pictures, save_sheet

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAIRS = {"satellite-relief": ("satellite", "relief"), "brain": ("brain-t1", "brain-t2")}
KINDS = ("quality", "softening", "depth")
SIGMAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
DEPTHS = (1.0, 0.85, 0.7, 0.5, 0.3)
DOMAIN_PICTURES = 500
"""Of each training part, for feature distances and histograms."""
SHOWN, FEW = 16, 8
SAMPLES = 48
MOST_CALIBRATING = 48


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        count: Test pictures of the tables over softening and depth; quality takes all, unless this is `only_count`.
        every: Test pictures of quality; None for all.
        evaluations: Of one leg.
        out: Folder of pages and measurements.
        models: Folder of bundles; None for those that ship.
        fresh: Measure again what is there.
    """

    count: int
    every: int | None
    evaluations: int
    out: Path
    models: Path | None
    fresh: bool

    @property
    def settings(self) -> SolverSettings:
        return SolverSettings(evaluations=self.evaluations)


class Pair:
    """Models and pictures of two domains that are registered with one another."""

    def __init__(self, name: str, options: Options) -> None:
        self.name, self.options = name, options
        self.domains = PAIRS[name]
        self.bundles: tuple[Bundle, Bundle] = tuple(_open(domain, options.models) for domain in self.domains)  # type: ignore[assignment]
        self.pictures: tuple[ShippedPictures, ShippedPictures] = tuple(map(load_shipped, self.domains))  # type: ignore[assignment]

    @cached_property
    def sides(self) -> tuple[LocalParty, LocalParty]:
        """Both models, ready to translate."""
        return open_party(self.bundles[0]), open_party(self.bundles[1])

    @cached_property
    def domain(self) -> Domain:
        """Training pictures of both, evenly thinned."""
        source, target = (thinned(part.train, DOMAIN_PICTURES) for part in self.pictures)
        return Domain(target, source)

    def rows(self, count: int | None) -> np.ndarray:
        """Which test pictures: so many, spread over all."""
        total = len(self.pictures[0].test)
        return np.linspace(0, total - 1, min(total, count or total)).round().astype(int)

    def test(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sources and truths."""
        return self.pictures[0].test[rows], self.pictures[1].test[rows]

    def translate(
        self, x: np.ndarray, *, cycle: bool = True, depth: float = 1.0, soften: float | None = None
    ) -> tuple[Stages, float]:
        """A translation, with the way back unless told not to, and the CPU seconds that it took."""
        asked = Asked(replace(self.options.settings, depth=depth), soften=soften, cycle=cycle)
        path = self.kept(x, asked)
        if path.exists():
            there = np.load(path)
            back = there.get("back")
            rows = tuple(range(len(x)))
            return Stages(rows, there["latent"], there["translated"], back=back), float(there["seconds"])
        started = time.process_time()
        found = translate_array(x, *self.sides, asked)
        spent = time.process_time() - started
        stacks = {"latent": found.latent, "translated": found.translated, "back": found.back}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, seconds=spent, **{name: one for name, one in stacks.items() if one is not None})
        return found, spent

    def kept(self, x: np.ndarray, asked: Asked) -> Path:
        """The file of a translation by these models."""
        said = json.dumps([self.digests, asdict(asked.settings), asked.soften, asked.cycle, asked.seed])
        key = hashlib.sha256(said.encode() + x.tobytes()).hexdigest()[:24]
        return ROOT / "build" / "pictures" / f"{self.name}-{key}.npz"

    @property
    def digests(self) -> list[str]:
        """Of both models, without the thresholds, on which no figure depends."""
        return [b.manifest.model_copy(update={"structure": None}).digest() for b in self.bundles]

    def measured(self, name: str, rows: np.ndarray | None, measure: Callable[[], dict[str, Any]]) -> None:
        """Run a measurement, unless its file is there for these models, pictures and settings."""
        asked = {
            "pair": self.name,
            "digests": self.digests,
            "pictures": [] if rows is None else rows.tolist(),
            "settings": asdict(self.options.settings),
        }
        path = self.options.out / "benchmarks" / "pictures" / self.name / f"{name}.json"
        if path.exists() and not self.options.fresh:
            there = json.loads(path.read_text(encoding="utf-8"))
            if all(there[key] == value for key, value in asked.items()):
                return
        started = time.process_time()
        figures = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        spent = round(time.process_time() - started, 1)
        write_json(path, {**asked, **figures, "cpu_seconds": spent, "torch": str(torch.__version__)})
        print(self.name, name, f"{spent:.0f} s CPU", flush=True)

    def sheet(self, name: str, stages: Sequence[Stage], **given: Any) -> None:
        """A PNG among the documents' pictures."""
        path = self.options.out / "images" / "pictures" / f"{self.name}-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        notes = dict.fromkeys(part.domain.note for part in self.pictures)
        save_sheet(path, stages, **({"caption": ". ".join(notes)} | given))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, help="test pictures; default: 64 for tables, all for quality")
    parser.add_argument("--evaluations", type=int, default=48, help="network evaluations of a leg")
    parser.add_argument("--models", type=Path, help="folder of bundles, one a domain")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of pages, measurements and pictures")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.report:
        options = Options(
            given.count or 64, given.count, given.evaluations, given.out, given.models, given.fresh
        )
        for name in given.pairs:
            pair = Pair(name, options)
            for kind in given.only:
                {"quality": quality, "softening": softening, "depth": depth}[kind](pair)
    from report_pictures import report

    report(given.out)


def quality(pair: Pair) -> None:
    """The models as they ship on the test part."""
    rows = pair.rows(pair.options.every)
    pair.measured("quality", rows, lambda: _quality(pair, rows))
    pair.measured("samples", None, lambda: _samples(pair))


def _quality(pair: Pair, rows: np.ndarray) -> dict[str, Any]:
    x, truth = pair.test(rows)
    found, spent = pair.translate(x)
    assert found.back is not None
    thresholds = _thresholds(pair)
    figures = judge(
        found.translated,
        source=x,
        truth=truth,
        back=found.back,
        domain=pair.domain,
        thresholds=thresholds,
        beside=Beside(clusters=shipped_clusters(pair.domains[0])[rows]),
    )
    each = figures.pop("pictures")
    shown = np.linspace(0, len(x) - 1, min(SHOWN, len(x))).round().astype(int)
    stages = (
        Stage(pair.domains[0], x[shown]),
        Stage("translated", found.translated[shown]),
        Stage(pair.domains[1], truth[shown]),
        Stage("back", found.back[shown]),
    )
    marks = [each[i]["doubtful"] for i in shown]
    pair.sheet("translations", stages, names=[f"{rows[i]}" for i in shown], doubtful=marks)
    return {
        **figures,
        "soften_sigma": [bundle.manifest.soften_sigma for bundle in pair.bundles],
        "parameters": [bundle.manifest.parameters for bundle in pair.bundles],
        "training": [bundle.manifest.training.model_dump() for bundle in pair.bundles],
        "latent": white(found.latent),
        "latent_of_each": _of_each(found.latent),
        "translating_cpu_seconds": round(spent, 1),
    }


def _of_each(latent: np.ndarray) -> dict[str, dict[str, float]]:
    """Spread over the pictures of what the check of a latent looks at (`diffusion.gaussianity`)."""
    each = [measure(torch.from_numpy(one[None])) for one in latent]
    names = ("mean", "std", "kurtosis", "correlation")
    columns = {name: np.array([getattr(one, name) for one in each]) for name in names}
    return {
        name: {"min": float(c.min()), "median": float(np.median(c)), "max": float(c.max())}
        for name, c in columns.items()
    }


def _thresholds(pair: Pair) -> Thresholds:
    """Of structure, from pictures of the source that were held out of training."""
    held = thinned(pair.pictures[0].held_out, MOST_CALIBRATING)
    return calibrate(held, pair.translate(held, cycle=False)[0].translated)


def _samples(pair: Pair) -> dict[str, Any]:
    """Pictures drawn from each model, and their distance to its own domain."""
    found: dict[str, Any] = {"count": SAMPLES, "samples": {}}
    for side, part in zip(pair.sides, pair.pictures, strict=True):
        drawn = draw_samples(side, SAMPLES, Asked(pair.options.settings))
        real = features.features(thinned(part.train, DOMAIN_PICTURES))
        found["samples"][part.domain.name] = {
            "distance": features.distance(features.features(drawn), real),
            "floor": features.floor(real, SAMPLES),
        }
        pair.sheet(f"samples-{part.domain.name}", [Stage("drawn", drawn[:SHOWN])], caption=part.domain.note)
    return found


def softening(pair: Pair) -> None:
    """Latents, round trips and translations at several noise levels."""
    rows = pair.rows(pair.options.count)
    for sigma in SIGMAS:
        pair.measured(f"softening-{sigma:g}", rows, partial(_softened, pair, rows, sigma))
    shown = pair.rows(FEW)
    pair.measured("latents", shown, lambda: _latent_sheet(pair, shown))


def _softened(pair: Pair, rows: np.ndarray, sigma: float) -> dict[str, Any]:
    return {"soften_sigma": sigma, **_translated(pair, rows, soften=sigma)[1]}


def _latent_sheet(pair: Pair, rows: np.ndarray) -> dict[str, Any]:
    """Latents before and after softening, beside noise, as pictures."""
    x = pair.test(rows)[0]
    sigma = pair.bundles[0].manifest.soften_sigma or SIGMAS[2]
    plain, softened = (pair.translate(x, soften=level, cycle=False)[0].latent for level in (0.0, sigma))
    noise = torch.randn(softened.shape, generator=torch.Generator().manual_seed(0)).numpy()
    stages = (
        Stage(pair.domains[0], x),
        Stage("latent, as it is", latent_pictures(plain)),
        Stage(f"softened by {sigma:g}", latent_pictures(softened)),
        Stage("true noise", latent_pictures(noise)),
    )
    pair.sheet("latents", stages, names=[str(row) for row in rows])
    return {"soften_sigma": sigma, "plain": white(plain), "softened": white(softened)}


def depth(pair: Pair) -> None:
    """Partial depth: encode to a fraction of the angle, decode from there."""
    rows = pair.rows(pair.options.count)
    for fraction in DEPTHS:
        pair.measured(f"depth-{fraction:g}", rows, partial(_deep, pair, rows, fraction))
    shown = pair.rows(FEW)
    pair.measured("depths", shown, lambda: _depth_sheet(pair, shown))


def _deep(pair: Pair, rows: np.ndarray, fraction: float) -> dict[str, Any]:
    found, figures = _translated(pair, rows, depth=fraction)
    own = pair.sides[0].to_model(pair.test(rows)[0]).cpu().numpy()  # with other colours, latents have those
    return {"depth": fraction, "latent_and_picture": likeness(found.latent, own), **figures}


def _depth_sheet(pair: Pair, rows: np.ndarray) -> dict[str, Any]:
    """The same pictures translated at several depths."""
    x, truth = pair.test(rows)
    stages = [Stage(pair.domains[0], x)]
    for fraction in DEPTHS:
        found, _ = pair.translate(x, depth=fraction, cycle=False)
        stages.append(Stage(f"depth {fraction:g}", found.translated))
    pair.sheet("depths", [*stages, Stage(pair.domains[1], truth)], names=[str(row) for row in rows])
    return {"depths": list(DEPTHS)}


def _translated(pair: Pair, rows: np.ndarray, **given: Any) -> tuple[Stages, dict[str, Any]]:
    """A translation of test pictures with the figures of one line of a table."""
    x, truth = pair.test(rows)
    found, spent = pair.translate(x, **given)
    assert found.back is not None
    kept = structure(x, found.translated)
    return found, {
        "count": len(x),
        "latent": white(found.latent),
        "paired": dict(compare(found.translated, truth).means()),
        "cycle_psnr": dict(spread(psnr(found.back, x))),
        "cycle_mse": dict(spread(mse(found.back, x))),
        "retrieval": dict(retrieval.by_pixels(found.translated, truth)),
        "edge_correlation": float(kept.edge_correlation.mean()),
        "mutual_information": float(kept.mutual_information.mean()),
        "translating_cpu_seconds": round(spent, 1),
    }


def white(latent: np.ndarray) -> dict[str, Any]:
    """Statistics of latents beside those of noise."""
    found = whiteness(torch.from_numpy(latent))
    return {**asdict(found.latent), "noise_correlation": found.noise.correlation, "ratio": found.ratio}


def likeness(latent: np.ndarray, x: np.ndarray) -> float:
    """Mean correlation of a latent's numbers with its picture's in the model's units, over those that are not flat."""
    found = []
    for z, picture in zip(latent, x, strict=True):
        if picture.std() > 0:
            found.append(float(np.corrcoef(z.ravel(), picture.ravel())[0, 1]))
    return float(np.mean(found))


def thinned(pictures: np.ndarray, count: int) -> np.ndarray:
    """At most so many, evenly spread."""
    chosen = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int)
    return pictures[chosen]


def _open(domain: str, models: Path | None) -> Bundle:
    assert domain in SHIPPED
    return pretrained(domain) if models is None else load_bundle(models / domain)


if __name__ == "__main__":
    main()

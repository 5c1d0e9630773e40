"""One pair of shipped domains of pictures that are registered with one another: models, pictures, translations."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddib_fed.bridge.arrays import Asked, Stages, translate_array
from ddib_fed.bridge.local_party import LocalParty, open_party
from ddib_fed.datasets.shipped import SHIPPED, ShippedPictures, load_shipped
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.files import write_json
from ddib_fed.metrics.judgement import Domain
from ddib_fed.metrics.latents import whiteness
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.shipped import pretrained
from ddib_fed.reports.sheets import Stage, save_sheet

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAIRS = {"satellite-relief": ("satellite", "relief"), "brain": ("brain-t1", "brain-t2")}
SIGMAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
DEPTHS = (1.0, 0.85, 0.7, 0.5, 0.3)
DOMAIN_PICTURES = 500
"""Of each training part, for feature distances and histograms."""


@dataclass(frozen=True)
class Options:
    """How much is measured."""

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
        return open_party(self.bundles[0]), open_party(self.bundles[1])

    @cached_property
    def domain(self) -> Domain:
        source, target = (thinned(part.train, DOMAIN_PICTURES) for part in self.pictures)
        return Domain(target, source)

    def rows(self, count: int | None) -> np.ndarray:
        total = len(self.pictures[0].test)
        return np.linspace(0, total - 1, min(total, count or total)).round().astype(int)

    def test(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.pictures[0].test[rows], self.pictures[1].test[rows]

    def translate(
        self, x: np.ndarray, *, cycle: bool = True, depth: float = 1.0, soften: float | None = None
    ) -> tuple[Stages, float]:
        """A translation, with the way back unless that is switched off, and the CPU seconds that it took."""
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
        said = json.dumps([self.digests, asdict(asked.settings), asked.soften, asked.cycle, asked.seed])
        key = hashlib.sha256(said.encode() + x.tobytes()).hexdigest()[:24]
        return ROOT / "build" / "pictures" / f"{self.name}-{key}.npz"

    @property
    def digests(self) -> list[str]:
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


def white(latent: np.ndarray) -> dict[str, Any]:
    found = whiteness(torch.from_numpy(latent))
    return {**asdict(found.latent), "noise_correlation": found.noise.correlation, "ratio": found.ratio}


def thinned(pictures: np.ndarray, count: int) -> np.ndarray:
    chosen = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int)
    return pictures[chosen]


def _open(domain: str, models: Path | None) -> Bundle:
    assert domain in SHIPPED
    return pretrained(domain) if models is None else load_bundle(models / domain)

"""Pictures of 256 pixels, satellite to relief: tiles of the models of 32 pixels, models of latents, the map alone.

    python -m benchmarks.pictures.large [--pictures 100] [--evaluations 24] [--models DIR] [--ways NAME ...]

Writes docs/benchmarks/pictures/large.json and docs/images/pictures/large.png; what each way made lies in build/large,
and a way named is made again. One thread. The pictures are test crops, evenly spaced; tiles are cut and averaged by
`ddib_fed.data.tiles`, as `ddib translate` does it. Calibrated ways take the setting that their calibration carries.
Wrong is a pixel on the other side of sea and land. CPU seconds are of one picture, there. Of models of latents stand
beside them, at the 48 evaluations that are usual, not timed: the median round trip, and that of the source's
autoencoder alone, in dB; and the share of latents that the gate lets pass.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import options
from benchmarks.calibration.directed import DOMAIN_PICTURES, thinned
from benchmarks.pictures.flicker import refused
from benchmarks.pictures.marks import water
from ddib_fed import metrics
from ddib_fed.calibration.record import Calibration, Dial
from ddib_fed.data.folder import expand
from ddib_fed.data.tiles import TileGrid, blend
from ddib_fed.datasets import shipped_bytes
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.evaluation.sheets import save_sheet, to_pixels
from ddib_fed.files import write_json
from ddib_fed.metrics import Pictures, compare, psnr
from ddib_fed.models.bundle import CALIBRATION_FILE, load_bundle, shipped_folder
from ddib_fed.record import Settings
from tests.engine.stages import translate_array

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "benchmarks" / "pictures" / "large.json"
SHEET = ROOT / "docs" / "images" / "pictures" / "large.png"
BUILD = ROOT / "build" / "large"
SHOWN = 6
USUAL = Settings().evaluations


class Way(NamedTuple):
    models: tuple[str, str]
    calibrated: bool = False
    tiled: bool = False
    bridge: bool = True
    dial: Dial | None = None


WAYS = {
    "map alone": Way(("satellite-256-as-relief-256", "relief-256"), calibrated=True, bridge=False),
    "latent models": Way(("satellite-256", "relief-256")),
    "latent models, calibrated": Way(("satellite-256-as-relief-256", "relief-256"), calibrated=True),
    "latent models, calibrated, share 0.5": Way(
        ("satellite-256-as-relief-256", "relief-256"),
        calibrated=True,
        dial=Dial(share=0.5, temperature=0.9, blend=0.15),
    ),
    "tiles of 32 pixels": Way(("satellite", "relief"), tiled=True),
    "tiles of 32 pixels, calibrated": Way(("satellite-as-relief", "relief"), calibrated=True, tiled=True),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--models", type=Path, help="folder of the models; default: those that ship")
    parser.add_argument("--ways", nargs="+", help="make only these again; the others' rows stay")
    given = parser.parse_args()
    torch.set_num_threads(1)
    (_, _, x), (real, _, truth) = shipped_bytes("satellite-256"), shipped_bytes("relief-256")
    chosen = np.unique(np.linspace(0, len(x) - 1, given.pictures).round().astype(int))
    x, truth = expand(x[chosen]), expand(truth[chosen])
    reference = metrics.features(expand(thinned(real, DOMAIN_PICTURES)))
    drawn, sea = metrics.resample(len(x)), water(truth)
    BUILD.mkdir(parents=True, exist_ok=True)
    models, rows = Models(given.models, given.evaluations), []
    shown = {"satellite": halved(x[:SHOWN])}
    for name in WAYS:
        row, pictures = BUILD / f"{name}.json", BUILD / f"{name}.npy"
        if name in (given.ways or WAYS):
            began, wall = time.process_time(), time.monotonic()
            y = models.translated(name, x)
            cpu, seconds = time.process_time() - began, time.monotonic() - wall
            same = compare(y, truth)
            found = {
                "way": name,
                "pictures": len(x),
                "evaluations": given.evaluations,
                "psnr": drawn.mean(same.psnr),
                "ssim": drawn.mean(same.ssim),
                "partner": drawn.mean(metrics.hits_by_pixels(y, truth)),
                "frechet_early": metrics.feature_distance(metrics.features(y), reference, drawn),
                "wrong": drawn.mean((water(y) != sea).mean((1, 2))),
                "cpu_seconds": round(cpu / len(x), 2),
                "seconds": round(seconds / len(x), 2),
                **models.round_trip(name, x),
            }
            print(
                {key: one["value"] if isinstance(one, dict) else one for key, one in found.items()},
                flush=True,
            )
            np.save(pictures, to_pixels(y).transpose(0, 3, 1, 2))
            write_json(row, found)
        if row.exists():
            rows.append(json.loads(row.read_text()))
            shown[name] = halved(expand(np.load(pictures)[:SHOWN]))
    write_json(OUT, rows)
    save_sheet(SHEET, {**shown, "relief (truth)": halved(truth[:SHOWN])}, across=SHOWN)


def halved(pictures: Pictures) -> Pictures:
    count, channels, height, width = pictures.shape
    small: Pictures = pictures.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))
    return small


def tiled(picture: Pictures, parties: tuple[LocalParty, LocalParty], asked: ArraySettings) -> Pictures:
    """By tiles that overlap by half, each translated by itself."""
    side = parties[0].model.sample_shape[1]
    grid = TileGrid.of(picture.shape[1], picture.shape[2], (side, side))
    cut = np.ascontiguousarray(np.stack([picture[:, down, across] for down, across in grid.windows()]))
    made = translate_array(cut, *parties, asked).translated
    whole, _ = blend([tile.clip(-1, 1).transpose(1, 2, 0) for tile in made], grid, 3)
    return whole.transpose(2, 0, 1).astype(np.float32)


class Models:
    """The bundles of the ways, from a folder or as shipped."""

    def __init__(self, folder: Path | None, evaluations: int) -> None:
        self.folder, self.evaluations = folder, evaluations

    def path(self, name: str) -> Path:
        own = None if self.folder is None else self.folder / name
        return own if own is not None and own.exists() else Path(str(shipped_folder() / name))

    def calibration(self, name: str) -> Calibration:
        return Calibration.open(self.path(name) / CALIBRATION_FILE)

    def parties(self, names: tuple[str, str], together: int = 16) -> tuple[LocalParty, LocalParty]:
        first, second = (open_party(load_bundle(self.path(name)), together=together) for name in names)
        return first, second

    def settings(self, dial: Dial, evaluations: int) -> SolverSettings:
        return SolverSettings(evaluations=evaluations, share=dial.share, temperature=dial.temperature)

    def translated(self, name: str, x: Pictures) -> Pictures:
        way = WAYS[name]
        agreed = self.calibration(way.models[0]) if way.calibrated else None
        mapped = x if agreed is None or agreed.alone is None else agreed.alone(x)
        if not way.bridge:
            return mapped
        dial = way.dial or (Dial() if agreed is None else agreed.dial)
        asked, parties = ArraySettings(self.settings(dial, self.evaluations)), self.parties(way.models)
        if way.tiled:
            y = np.stack([tiled(picture, parties, asked) for picture in x])
        else:
            y = translate_array(x, *parties, asked).translated
        return ((1 - dial.blend) * y.clip(-1, 1) + dial.blend * mapped).astype(np.float32)

    def round_trip(self, name: str, x: Pictures) -> dict[str, float]:
        way = WAYS[name]
        if way.tiled or not way.bridge:
            return {}
        dial = way.dial or (self.calibration(way.models[0]).dial if way.calibrated else Dial())
        source, target = self.parties(way.models)
        made = translate_array(x, source, target, ArraySettings(self.settings(dial, USUAL), cycle=True))
        assert made.back is not None
        model = source.model
        alone = np.concatenate([model.out_of_units(model.into_units(one)) for one in np.split(x, len(x))])
        return {
            "round_trip": float(np.median(psnr(made.back, x))),
            "autoencoder": float(np.median(psnr(alone.clip(-1, 1), x))),
            "passed": float(np.mean([not refused(torch.from_numpy(z)) for z in made.latent])),
        }


if __name__ == "__main__":
    main()

"""Pictures of 256 pixels, satellite to relief: tiles of the models of 32 pixels, models of latents, the map alone.

    python -m benchmarks.pictures.large [--pictures 100] [--evaluations 24] [--models DIR] [--ways NAME ...]

Writes docs/benchmarks/pictures/large.json and docs/images/pictures/large.png. One thread. The pictures are test crops,
evenly spaced; tiles are cut and averaged by `ddib_fed.formats.tiles`, as `ddib translate` does it. Calibrated ways take
the setting that their calibration carries. Wrong is a pixel on the other side of sea and land. CPU seconds are of one
picture, there; the round trip of a way is measured with it and not timed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.calibration.directed import DOMAIN_PICTURES, thinned
from benchmarks.pictures.marks import water
from ddib_fed.calibration.record import Calibration, Dial, parse_calibration
from ddib_fed.data.folder import expand
from ddib_fed.data.shipped import shipped_bytes
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.evaluation import features, judgement, metrics
from ddib_fed.evaluation.metrics import Pictures, compare, psnr
from ddib_fed.evaluation.sheets import Stage, save_sheet
from ddib_fed.files import write_json
from ddib_fed.formats.tiles import TileGrid, blend
from ddib_fed.models.bundle import CALIBRATION_FILE, Bundle, load_bundle, shipped_folder
from tests.engine.stages import translate_array

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "benchmarks" / "pictures" / "large.json"
SHEET = ROOT / "docs" / "images" / "pictures" / "large.png"
SHOWN = 6
Way = Callable[[Pictures], tuple[Pictures, Pictures | None]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--models", type=Path, help="folder of the models; default: those that ship")
    parser.add_argument("--ways", nargs="+", help="only these; the others' rows stay")
    given = parser.parse_args()
    torch.set_num_threads(1)
    (_, _, x), (real, _, truth) = shipped_bytes("satellite-256"), shipped_bytes("relief-256")
    chosen = np.unique(np.linspace(0, len(x) - 1, given.pictures).round().astype(int))
    x, truth = expand(x[chosen]), expand(truth[chosen])
    reference = features.features(expand(thinned(real, DOMAIN_PICTURES)))
    drawn, sea = judgement.resample(len(x)), water(truth)
    rows = json.loads(OUT.read_text()) if OUT.exists() and given.ways else []
    kept = {row["way"]: row for row in rows}
    shown = [Stage("satellite", x[:SHOWN])]
    for name, make in ways(given.models, given.evaluations).items():
        if given.ways and name not in given.ways:
            continue
        began, wall = time.process_time(), time.monotonic()
        y, back = make(x)
        cpu, seconds = (
            round((now - then) / len(x), 2)
            for now, then in ((time.process_time(), began), (time.monotonic(), wall))
        )
        same = compare(y, truth)
        kept[name] = {
            "way": name,
            "pictures": len(x),
            "evaluations": given.evaluations,
            "psnr": drawn.mean(same.psnr),
            "ssim": drawn.mean(same.ssim),
            "partner": drawn.mean(metrics.hits_by_pixels(y, truth)),
            "frechet_early": judgement.feature_distance(features.features(y), reference, drawn),
            "wrong": drawn.mean((water(y) != sea).mean((1, 2))),
            "round_trip": None if back is None else float(np.median(psnr(back, x))),
            "cpu_seconds": cpu,
            "seconds": seconds,
        }
        print(
            name,
            {key: value["value"] if isinstance(value, dict) else value for key, value in kept[name].items()},
            flush=True,
        )
        shown.append(Stage(name, y[:SHOWN]))
        write_json(OUT, list(kept.values()))
    save_sheet(SHEET, [*shown, Stage("relief (truth)", truth[:SHOWN])], across=SHOWN)


def ways(models: Path | None, evaluations: int) -> dict[str, Way]:
    def bundle(name: str) -> Bundle:
        own = models / name if models is not None and (models / name).exists() else shipped_folder() / name
        return load_bundle(own)

    def calibration(name: str) -> Calibration:
        own = models / name if models is not None and (models / name).exists() else shipped_folder() / name
        return parse_calibration((own / CALIBRATION_FILE).read_bytes(), name)

    def settings(dial: Dial) -> ArraySettings:
        solver = SolverSettings(evaluations=evaluations, share=dial.share, temperature=dial.temperature)
        return ArraySettings(solver)

    def latent(source: str, target: str, agreed: Calibration | None = None) -> Way:
        dial = Dial() if agreed is None else agreed.dial

        def way(x: Pictures) -> tuple[Pictures, Pictures | None]:
            parties = open_party(bundle(source)), open_party(bundle(target))
            return mixed(translate_array(x, *parties, settings(dial)).translated, x, agreed), None

        return way

    def tiles(source: str, target: str, agreed: Calibration | None = None) -> Way:
        dial = Dial() if agreed is None else agreed.dial

        def way(x: Pictures) -> tuple[Pictures, Pictures | None]:
            parties = open_party(bundle(source), together=64), open_party(bundle(target), together=64)
            side = parties[0].model.sample_shape[1]
            grid, found = TileGrid.of(*x.shape[2:], (side, side)), []
            for picture in x:
                cut = np.ascontiguousarray(
                    np.stack([picture[:, down, across] for down, across in grid.windows()])
                )
                made = translate_array(cut, *parties, settings(dial)).translated
                whole, _ = blend([tile.clip(-1, 1).transpose(1, 2, 0) for tile in made], grid, 3)
                found.append(whole.transpose(2, 0, 1))
            return mixed(np.stack(found).astype(np.float32), x, agreed), None

        return way

    def mixed(y: Pictures, x: Pictures, agreed: Calibration | None) -> Pictures:
        share = 0.0 if agreed is None else agreed.dial.blend
        mapped = agreed.alone(x) if agreed is not None and share else y
        return ((1 - share) * y.clip(-1, 1) + share * mapped).astype(np.float32)

    small, large = calibration("satellite-as-relief"), calibration("satellite-256-as-relief-256")
    return {
        "map alone": lambda x: (large.alone(x), None),
        "latent models": latent("satellite-256", "relief-256"),
        "latent models, calibrated": latent("satellite-256-as-relief-256", "relief-256", large),
        "tiles of 32 pixels": tiles("satellite", "relief"),
        "tiles of 32 pixels, calibrated": tiles("satellite-as-relief", "relief", small),
    }


if __name__ == "__main__":
    main()

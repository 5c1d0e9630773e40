"""Calibrations without pairs: one noised aggregate each, the source's model retrained on its mapped pictures.

    python -m benchmarks.calibration.unpaired --pairs satellite-relief --seeds 0 1 2

A seed is that of the aggregate's noise, of the search and of the training. Bundles and calibrations go to
build/calibrated/SOURCE-TARGET-SEED, figures of all test pictures to docs/benchmarks/calibration/unpaired.
What is there already is neither trained nor measured again. A pair that is refused is reported with its figures, and
nothing is trained for it, unless --force. --ship SEED copies that seed's model to the package.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options
from benchmarks.calibration.directed import NAMED, OUT, ROOT, Directed
from benchmarks.pictures.marks import wrong_of
from ddib_fed.calibration.aggregate import Aggregate, count_array
from ddib_fed.calibration.record import Calibration, Dial
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.errors import CalibrationIneffective
from ddib_fed.files import write_json
from ddib_fed.metrics import calibrate_by_chance
from ddib_fed.models.bundle import CALIBRATION_FILE, amend_bundle, load_bundle
from ddib_fed.models.catalogue import MANIFEST_FILE, WEIGHTS_FILE
from ddib_fed.protocol.contract import CalibrationKind
from ddib_fed.training.calibrating import CalibrationRequest, Ends, from_aggregate, side
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import TrainingProgress, train
from ddib_fed.training.sources import shipped_source
from tests.engine.stages import translate_array

MADE = ROOT / "build" / "calibrated"
PRETRAINED = ROOT / "ddib_fed" / "models" / "pretrained"
KINDS: tuple[CalibrationKind, ...] = ("rotation", "colour-map")
DIALS = {"alone": None, "1": Dial(), "share": Dial(share=0.75, temperature=0.9),
         "dial": Dial(share=0.75, temperature=0.9, blend=0.3)}  # fmt: skip
"""The map alone, the plain bridge, and what the dial proposes without and with its blend."""
STEPS, BATCH = 400, 32
DAYS = 3650


def main() -> int:
    """Make and measure what is missing."""
    parser = options(__doc__)
    parser.add_argument(
        "--pairs", nargs="+", choices=NAMED, default=["satellite-relief"], metavar="SOURCE-TARGET"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--force", action="store_true", help="go on where the calibration is refused")
    parser.add_argument("--ship", type=int, metavar="SEED", help="make the shipped model of this seed's")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.ship is not None:
        for name in given.pairs:
            ship(MADE / f"{name}-{given.ship}", *NAMED[name])
        return 0
    for name in given.pairs:
        for seed in given.seeds:
            one(Directed(*NAMED[name]), seed, given)
    return 0


def one(directed: Directed, seed: int, given: argparse.Namespace) -> None:
    """Make and measure the calibrations of one seed."""
    folder = MADE / f"{directed.name}-{seed}"
    found = calibrations(directed, seed, folder, epsilon=given.epsilon, force=given.force)
    if found is None:
        return
    if not (folder / "manifest.json").is_file():
        retrain(directed, seed, folder)
    for kind in KINDS:
        for name, dial in DIALS.items():
            out = OUT / "unpaired" / f"{directed.name}-{seed}-{kind}-{name}.json"
            if not out.is_file():
                report = measured(directed, found[kind], folder, dial)
                out.parent.mkdir(parents=True, exist_ok=True)
                write_json(out, report)
                print(out.name, _short(report["figures"]), report["wrong"], flush=True)


def calibrations(
    directed: Directed, seed: int, folder: Path, *, epsilon: float, force: bool
) -> dict[str, Calibration] | None:
    """Both kinds from one aggregate; None where they are refused."""
    paths = {kind: path_of(folder, kind) for kind in KINDS}
    if not all(path.is_file() for path in paths.values()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        own, units = directed.pictures[0].train, directed.bundles[0].manifest
        published = aggregate(directed, seed, epsilon)
        for kind, path in paths.items():
            command = f"python -m benchmarks.calibration.unpaired --pairs {directed.name} --seeds {seed}"
            wanted = CalibrationRequest(kind=kind, days=DAYS, seed=seed, force=force)
            ends = Ends(side(units), ("", directed.target_name), command)
            try:
                both = units.normalisation.plain, directed.bundles[1].manifest.normalisation.plain
                made = from_aggregate(own, both, published, wanted, ends)
            except CalibrationIneffective as refused:
                print(f"{directed.name} {seed} {kind}: refused: {refused.detail}", flush=True)
                return None
            made.save(path)
            print(f"{path.name}: margin {made.effect.margin}, distance {made.effect.distance}", flush=True)
    return {kind: Calibration.open(path) for kind, path in paths.items()}


def ship(folder: Path, source: str, target: str) -> None:
    """Copy a retrained model and its calibration to the package, as SOURCE-as-TARGET."""
    out = PRETRAINED / f"{source}-as-{target}"
    out.mkdir(exist_ok=True)
    for file in (MANIFEST_FILE, WEIGHTS_FILE):
        shutil.copyfile(folder / file, out / file)
    units = load_bundle(out).manifest.normalisation
    pictures = shipped_source(source)
    structure = calibrate_by_chance(pictures.held_out, pictures.train, units=units)
    amend_bundle(out, name=out.name, structure=structure)
    made = Calibration.open(path_of(folder, "colour-map")).model_copy(update={"dial": DIALS["dial"]})
    (out / CALIBRATION_FILE).unlink(missing_ok=True)
    made.save(out / CALIBRATION_FILE)


def path_of(folder: Path, kind: CalibrationKind) -> Path:
    return folder.parent / (f"{folder.name}.json" if kind == "colour-map" else f"{folder.name}-{kind}.json")


def aggregate(directed: Directed, seed: int, epsilon: float) -> Aggregate:
    """What the target would publish, its noise repeatable by the seed."""
    units, pictures = directed.bundles[1].manifest.normalisation, directed.pictures[1].train
    counted = count_array(pictures, units, directed.target_name, epsilon=epsilon)
    return counted.noised(epsilon, generator=np.random.default_rng(seed))


def retrain(directed: Directed, seed: int, folder: Path) -> None:
    """The source's model on its mapped pictures."""
    name, started = directed.source_name, time.process_time()
    config = TrainConfig(
        kind="pictures",
        domain=name,
        name=name,
        preset="tiny-32",
        steps=STEPS,
        batch=BATCH,
        microbatch=BATCH,
        seed=seed,
        precision="bfloat16",
        init=PRETRAINED / name,
        calibration=path_of(folder, "colour-map"),
        soften_sigma=directed.bundles[0].manifest.soften_sigma,
        checkpoint_every=200,
        command=f"python -m benchmarks.calibration.unpaired --pairs {directed.name} --seeds {seed}",
    )

    def tell(now: TrainingProgress) -> None:
        if now.step % 100 == 0:
            spent = time.process_time() - started
            print(f"{folder.name}: step {now.step}, loss {now.loss:.4f}, {spent:.0f} CPU s", flush=True)

    train(config, folder, tell, resume=True)


def measured(directed: Directed, calibration: Calibration, folder: Path, dial: Dial | None) -> dict[str, Any]:
    """Figures of all test pictures under a calibration, by its map alone or by the bridge; the round trip, too."""
    rotated = calibration.kind == "rotation"
    source = directed.parties[0] if rotated else open_party(load_bundle(folder))
    translated, back, latent = calibration.alone(directed.test[0]), None, None
    if dial is not None:
        settings = SolverSettings(evaluations=48, share=dial.share, temperature=dial.temperature)
        asked = ArraySettings(settings, cycle=True, calibration=calibration.map if rotated else None)
        made = translate_array(directed.test[0], source, directed.parties[1], asked)
        translated = ((1.0 - dial.blend) * made.translated + dial.blend * translated).astype(np.float32)
        back, latent = made.back, made.latent
    return {
        "kind": calibration.kind,
        "dial": None if dial is None else dial.model_dump(),
        "made": calibration.made.model_dump(mode="json"),
        "effect": calibration.effect.model_dump(mode="json"),
        "source_digest": source.model.bundle.digest,
        "target_digest": directed.bundles[1].digest,
        "count": len(translated),
        "wrong": float(wrong_of(directed)(translated).mean()),
        "figures": directed.figures(translated, back=back, latent=latent),
    }


def _short(figures: dict[str, Any]) -> str:
    named = ("psnr", "ssim", "partner", "frechet_early", "cycle_psnr")
    return ", ".join(f"{name} {figures[name]['value']:.3f}" for name in named if name in figures)


if __name__ == "__main__":
    sys.exit(main())

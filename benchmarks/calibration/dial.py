"""The curve of a calibration's dial: what each share gives, what its latents show, and what the dial proposes.

    python -m benchmarks.calibration.dial       three pairs, a quarter of an hour; docs/benchmarks/calibration/dial
    python -m benchmarks.calibration.dial --plot    docs/images/dial.png again from what is there

Quality is of all test pictures at 24 evaluations; the leak is what the linear read-out by frequency (`lab.report`),
fitted to 512 pairs of the source's training part, reads from latents of the test part. Beside the shares every
temperature and blend that the dial tries, at the share that it proposes on pictures held out of training, which tells
how far the proposal is from the best at its leak. One thread, float32.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.directed import NAMED, OUT, ROOT, Directed
from benchmarks.pictures.marks import BAD, states, wrong_of
from ddib_fed import metrics
from ddib_fed.calibration.record import Calibration, Dial
from ddib_fed.client.dial import BLEND, COOL, measure_dial
from ddib_fed.client.in_process import InProcess
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.files import write_json
from ddib_fed.lab.report import fit_inverter, latents_along
from ddib_fed.metrics import compare
from ddib_fed.model import Model
from tests.engine.stages import translate_array

FOLDER = OUT / "dial"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
DEPTHS = (0.85, 0.7)
KNOWN, EVALUATIONS = 512, 24


def main() -> int:
    torch.set_num_threads(1)
    for name in BAD if "--plot" not in sys.argv else ():
        if (FOLDER / f"{name}.json").exists():
            continue
        directed = Directed(*NAMED[name])
        kind, calibration, party, turned = list(states(directed))[-1]
        found = measured(directed, calibration, party, turned)
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_json(FOLDER / f"{name}.json", {"pair": name, "calibration": kind, **found})
    plot()
    return 0


def measured(
    directed: Directed, calibration: Calibration, party: LocalParty, turned: Calibration | None
) -> dict[str, Any]:
    source, wrong = directed.test[0], wrong_of(directed)
    alone = calibration.alone(source)
    model = party.model
    train = directed.pictures[0].train
    known = train[np.linspace(0, len(train) - 1, KNOWN).round().astype(int)]

    def translated(dial: Dial, depth: float = 1.0) -> np.ndarray:
        settings = SolverSettings(
            evaluations=EVALUATIONS, share=dial.share, temperature=dial.temperature, depth=depth
        )
        asked = ArraySettings(settings, calibration=None if turned is None else turned.map)
        found = translate_array(source, party, directed.parties[1], asked)
        mixed = (1.0 - dial.blend) * found.translated + dial.blend * alone
        return mixed.astype(np.float32)

    def row(dial: Dial, stack: np.ndarray) -> dict[str, Any]:
        sharp = metrics.sharpness(stack).mean() / metrics.sharpness(directed.test[1]).mean()
        figures = directed.figures(stack)
        kept = {key: figures[key] for key in ("psnr", "ssim", "partner", "frechet_early")}
        return {**dial.model_dump(), **kept, "sharpness": float(sharp), "wrong": float(wrong(stack).mean())}

    @cache
    def leak(share: float, depth: float = 1.0) -> float:
        z = [
            latents_along(
                Model(model.bundle), model.normalise(each), depths=tuple({depth} - {1.0}), share=share,
                evaluations=EVALUATIONS, sigma=model.manifest.soften_sigma, seed=seed,
            )[depth]
            for seed, each in ((1, known), (0, source))
        ]  # fmt: skip
        read = fit_inverter(z[0], model.normalise(known), steps=0).inverse(z[1])
        return float(compare(np.clip(model.denormalise(read), -1.0, 1.0), source).psnr.mean())

    client = InProcess(party, directed.parties[1])
    _, proposed = measure_dial(calibration, model.bundle, client.target, client=client)
    rows = [
        {**row(Dial(share=share), translated(Dial(share=share))), "leak": leak(share)} for share in SHARES
    ]
    beside = [
        Dial(share=proposed.share, temperature=temperature, blend=blend)
        for temperature in (1.0, COOL)
        for blend in (0.0, BLEND)
    ]
    others = [row(dial, translated(dial)) for dial in beside]
    depths = [
        {**row(dial, translated(dial, depth)), "depth": depth, "leak": leak(1.0, depth)}
        for depth in DEPTHS
        for dial in (Dial(), Dial(blend=BLEND))
    ]
    best = max(each["ssim"]["value"] for each in others)
    own = next(each for each in others if Dial(**{k: each[k] for k in Dial.model_fields}) == proposed)
    found = {
        "map_alone": row(Dial(), alone),
        "shares": rows,
        "at_the_proposed_share": others,
        "depths": depths,
        "proposed": proposed.model_dump(),
        "ssim_below_the_best": best - own["ssim"]["value"],
    }
    print(directed.name, json.dumps(found)[:3000], flush=True)
    return found


def plot() -> None:
    """SSIM and feature distance over the leak, a line a pair."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, path in zip(("#3366cc", "#d33f6a", "#2a9d4a"), sorted(FOLDER.glob("*.json")), strict=False):
        found = json.loads(path.read_text(encoding="utf-8"))
        leak = [each["leak"] for each in found["shares"]]
        where = next(
            i for i, each in enumerate(found["shares"]) if each["share"] == found["proposed"]["share"]
        )
        own = next(
            each
            for each in found["at_the_proposed_share"]
            if all(each[key] == value for key, value in found["proposed"].items())
        )
        for axis, key in ((left, "ssim"), (right, "frechet_early")):
            values = [each[key]["value"] for each in found["shares"]]
            axis.plot(
                leak, values, marker="o", color=colour, label=f"{found['pair']}, {found['calibration']}"
            )
            for x, y, each in zip(leak, values, found["shares"], strict=True):
                axis.annotate(
                    f"{each['share']:g}", (x, y), xytext=(3, 4), textcoords="offset points", fontsize=7
                )
            axis.scatter([leak[where]], [own[key]["value"]], marker="*", s=130, color=colour, zorder=3)
            axis.axhline(found["map_alone"][key]["value"], color=colour, linestyle=":", linewidth=1)
    for axis, title in ((left, "SSIM"), (right, "feature distance")):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("read from a latent by 512 pairs, PSNR dB", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=7)
    FigureCanvasAgg(figure).print_png(ROOT / "docs" / "images" / "dial.png")


if __name__ == "__main__":
    sys.exit(main())

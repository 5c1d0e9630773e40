"""A calibration and all test pictures between two nodes, by the commands that their operators and a client type.

    python -m benchmarks.calibration.nodes [--pair satellite-relief] [--kind colour-map] [--steps 400]

Two institutions with the shipped models in one folder, their nodes as processes. The target publishes one aggregate of
its training pictures (epsilon 1, noise from the system's generator), the source calibrates to it, and for a colour map
its model is trained again with what both signed. The client translates the same files before and after. Figures are of
the files that the client wrote and of their records; JSON in docs/benchmarks/calibration/nodes. With --measure
FOLDER nothing runs but the figures of an earlier --out FOLDER.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options
from benchmarks.calibration.directed import COLOURS, NAMED, OUT, Directed
from benchmarks.pictures.marks import wrong_of
from ddib_fed.calibration.record import Calibration, Dial
from ddib_fed.data.pictures import encode_png
from ddib_fed.demo import agree, run, show, translate
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.evaluation.translations import read_translations
from ddib_fed.files import write_json
from ddib_fed.metrics import Pictures, Resamples, histogram_match, resample
from ddib_fed.testing import NodeProcess, TwoNodes

FOLDER = OUT / "nodes"
INSTITUTIONS = ("east.example", "west.example")
BATCH = 32
CROSSED = "crossed.json"


PLAIN_DIAL = Dial()


@dataclass(frozen=True, slots=True)
class Run:
    """One job of all pictures."""

    name: str
    dial: Dial = PLAIN_DIAL
    cycle: bool = False


SHARE = Dial(share=0.75, temperature=0.9)
PROPOSED = SHARE.model_copy(update={"blend": 0.3})
PLAIN = Run("uncalibrated", cycle=True)
ROTATION = (Run("rotation"), Run("rotation, share", SHARE), Run("rotation, dial", PROPOSED))
COLOUR_MAP = (
    Run("colour-map"), Run("colour-map, share", SHARE), Run("colour-map, dial", PROPOSED, cycle=True)
)  # fmt: skip
NAMES = tuple(run.name for run in (PLAIN, *ROTATION, *COLOUR_MAP))


@dataclass
class Some(Directed):
    """A directed pair with evenly spaced test pictures only."""

    count: int = 0

    @cached_property
    def rows(self) -> np.ndarray:
        total = len(self.pictures[0].test)
        return np.linspace(0, total - 1, self.count or total).round().astype(int)

    @property
    def test(self) -> tuple[Pictures, Pictures]:
        source, target = super().test
        return source[self.rows], target[self.rows]

    @cached_property
    def drawn(self) -> Resamples:
        return resample(len(self.rows), self.clusters[self.rows])


def main() -> int:
    """Run, measure, write JSON."""
    parser = options(__doc__)
    parser.add_argument("--pair", choices=COLOURS, default=COLOURS[0], metavar="SOURCE-TARGET")
    parser.add_argument("--kind", choices=["rotation", "colour-map"], default="colour-map")
    parser.add_argument("--steps", type=int, default=400, help="of the source's training")
    parser.add_argument(
        "--count", type=int, default=0, help="translate so many test pictures; writes no JSON"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep everything in this new folder")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="only the figures of such a folder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    directed = Some(*NAMED[given.pair], count=given.count)
    with ExitStack() as kept:
        folder = given.measure or given.out or Path(kept.enter_context(tempfile.TemporaryDirectory()))
        if given.measure is None:
            folder.mkdir(parents=True, exist_ok=True)
            between_nodes(folder, directed, given.kind, given.steps)
        found = {**measured(folder, directed), "steps": given.steps}
    if given.count:
        print(json.dumps(found, indent=2))
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_json(FOLDER / f"{given.pair}.json", found)
    return 0


def between_nodes(folder: Path, directed: Directed, kind: str, steps: int) -> None:
    """All commands; what they leave is below the folder."""
    kinds = ["rotation"] if kind == "rotation" else ["rotation", "colour-map"]
    settings = {"calibration": kinds, "least_share": SHARE.share, "threads": 1}
    models = (directed.source_name, directed.target_name)
    nodes = TwoNodes.create(folder, *models, institutions=INSTITUTIONS, settings=settings, echo=show)
    (folder / "in").mkdir(parents=True)
    for row, pixels in enumerate(to_pixels(directed.test[0])):
        (folder / "in" / f"{row:03}.png").write_bytes(encode_png(pixels))
    crossed: dict[str, Any] = {}
    with nodes:
        _translate(nodes, folder, PLAIN)
        crossed["rotation"] = _agree(nodes, "rotation", publish=True)
        for job in ROTATION:
            _translate(nodes, folder, job)
        if kind == "colour-map":
            crossed["colour-map"] = _agree(nodes, "colour-map")
            _retrain(nodes.source, crossed["colour-map"]["sha256"], steps)
            for job in COLOUR_MAP:
                _translate(nodes, folder, job)
    write_json(folder / CROSSED, crossed)


def _translate(nodes: TwoNodes, folder: Path, job: Run) -> None:
    words = ["--keep-latents"]
    words += ["--cycle"] if job.cycle else []
    for name, value in job.dial:
        words += ["--set", f"{name}={value:g}"]
    with _timed(job.name):
        translate(nodes, folder / "in", folder / job.name, *words)


def _agree(nodes: TwoNodes, kind: str, *, publish: bool = False) -> dict[str, Any]:
    """The digest and the calibration that both have signed, to what the target has published."""
    with _timed(f"calibrate {kind}"):
        if publish:
            target = nodes.target.config
            run("calibrate", "publish", "--pictures", target.model.domain, "--yes", "--config", target.path)
        made = agree(nodes, "--kind", kind, "--pictures", nodes.source.config.model.domain)
    return {"sha256": made.sha256.hex(), "calibration": made.model_dump(mode="json", exclude_none=True)}


def _retrain(source: NodeProcess, sha256: str, steps: int) -> None:
    """The source's model again, on its pictures mapped by what both signed; its node then serves it."""
    file = source.folder / "colours.json"
    run("calibrate", "show", sha256[:12], "--out", file, "--config", source.config_path)
    with _timed("train"):
        run(
            "model", "train", "--domain", source.config.model.domain, "--init", source.folder / "model",
            "--calibration", file, "--out", source.folder / "mapped", "--steps", str(steps), "--batch", str(BATCH),
            "--set", "precision=bfloat16",
        )  # fmt: skip
    source.stop()
    source.configure({"bundle": "mapped"})
    source.start()


@contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.perf_counter(), time.process_time()
    yield
    wall, own = time.perf_counter() - started[0], time.process_time() - started[1]
    print(f"# {what}: {wall:.0f} s, {own:.0f} CPU s of this process", flush=True)


def measured(folder: Path, directed: Some) -> dict[str, Any]:
    """Figures of each job whose results are there, of histogram matching and of what crossed."""
    matched = histogram_match(directed.test[0], *directed.unpaired)
    crossed = json.loads((folder / CROSSED).read_text(encoding="utf-8"))
    return {
        "source": directed.source_name,
        "target": directed.target_name,
        "count": len(directed.test[0]),
        "clusters": len(np.unique(directed.clusters[directed.rows])),
        "histogram": _of(directed, matched),
        "truth_distance": directed.truth_distance,
        "alone": {
            kind: _of(directed, Calibration.model_validate(one["calibration"]).alone(directed.test[0]))
            for kind, one in crossed.items()
        },
        "runs": {name: _figures(folder / name, directed) for name in NAMES if (folder / name).is_dir()},
        "crossed": crossed,
    }


def _of(directed: Some, translated: Pictures, **more: Any) -> dict[str, Any]:
    wrong = float(wrong_of(directed)(translated).mean())
    return {**directed.figures(translated, **more), "wrong": wrong}


def _figures(folder: Path, directed: Some) -> dict[str, Any]:
    """Of one job: of its files, as `Directed.figures` has them, and of its records."""
    found = read_translations(folder)
    records, cycle = found.records, found.back is not None
    latents = [np.load(folder / f"{name}.latent.npy") for name in found.names]
    latent = np.concatenate(latents).astype(np.float32)
    each = {
        "latent_std": [record.latent.std for record in records],
        "latent_correlation": [record.latent.correlation for record in records],
        **({"recorded_cycle_psnr": [record.picture.cycle_psnr for record in records]} if cycle else {}),
    }
    first, recorded = records[0], each.get("recorded_cycle_psnr")
    return {
        "figures": _of(directed, found.translated, back=found.back, latent=latent),
        "records": {name: directed.drawn.mean(np.array(values)) for name, values in each.items()},
        "least_cycle_psnr": None if recorded is None else min(recorded),
        "doubtful": {
            doubt: sum(doubt in (record.doubts or ()) for record in records)
            for doubt in ("cycle_psnr", "edge_correlation", "differs", "calibration")
        },
        "wire_bytes": {
            "least": min(r.wire_bytes for r in records),
            "most": max(r.wire_bytes for r in records),
        },
        "solver": asdict(first.solver),
        "soften_sigma": first.soften_sigma,
        "calibration": {"kind": first.calibration_kind, "sha256": first.calibration_sha256},
        "source_model_sha256": first.source_model_sha256,
        "target_model_sha256": first.target_model_sha256,
    }


if __name__ == "__main__":
    sys.exit(main())

"""Whether a shared public start helps structure: the maps at 16 pixels, from weights in common or each from the seed.

    python -m benchmarks.pictures.shared_start [--work build/shared-start] [--steps 1000]   15 minutes of a core

A public model learns both kinds of map, mixed, on ground held out of both domains. Each side then goes on
from it (`--init`) on ground of its own for as many steps; beside it each side learns from the seed alone for as many
steps, and for as many as both together. Writes docs/benchmarks/pictures/shared-start.json and the table between the
markers of docs/pictures.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.pages import between, markdown
from benchmarks.pictures.pair import DOCS, white
from ddib_fed.bridge.arrays import Asked, translate_array
from ddib_fed.bridge.local_party import open_party
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.files import write_file, write_json
from ddib_fed.metrics import retrieval
from ddib_fed.metrics.pictures import compare
from ddib_fed.models.bundle import Bundle
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.pictures.sources import array_source

DOMAINS = ("satellite", "relief")
HELD_OUT = 128
COLUMNS = ("start", "steps a side", "PSNR dB", "SSIM", "partner among 5", "latent std")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/shared-start"))
    parser.add_argument("--steps", type=int, default=1_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    maps = {name: load_shipped(name) for name in DOMAINS}
    public = np.concatenate([halved(part.held_out) for part in maps.values()])
    start = _train(given.work / "public", public, public[:HELD_OUT], given.steps, None)
    own = {name: (halved(part.train), halved(part.held_out)[:HELD_OUT]) for name, part in maps.items()}
    rows = []
    for title, folder, steps, init in (
        ("from the seed", "short", given.steps, None),
        ("from the seed", "seed", 2 * given.steps, None),
        ("shared", "shared", given.steps, given.work / "public"),
    ):
        models = [_train(given.work / f"{folder}-{name}", *own[name], steps, init) for name in DOMAINS]
        rows.append({"start": title, "steps": steps, **_measured(models, maps)})
    write_json(
        DOCS / "benchmarks" / "pictures" / "shared-start.json",
        {"public": start.digest, "public_pictures": len(public), "public_steps": given.steps, "rows": rows},
    )
    cells = tuple(tuple(row.values()) for row in rows)
    page = DOCS / "pictures.md"
    text = page.read_text(encoding="utf-8")
    text = between(text, "shared-start", "benchmarks/pictures/shared_start.py", markdown(COLUMNS, cells))
    write_file(page, text.encode())


def halved(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    count, channels, height, width = pictures.shape
    return pictures.reshape(count, channels, height // 2, 2, width // 2, 2).mean(axis=(3, 5))


def _train(
    out: Path, train: NDArray[np.float32], held_out: NDArray[np.float32], steps: int, init: Path | None
) -> Bundle:
    config = TrainConfig(
        kind="pictures",
        name=out.name,
        network={"channel_mult": (1, 2), "attention_resolutions": (2,)} if init is None else {},
        steps=steps,
        batch=32,
        colours="opponent",
        soften_sigma=0.02,
        init=init,
        command="python -m benchmarks.pictures.shared_start",
    )
    bundle = train(config, out, source=array_source(out.name, train, held_out), resume=True)
    print(out.name, bundle.manifest.training.figures["cpu_seconds"], flush=True)
    return bundle


def _measured(models: list[Bundle], maps: dict[str, Any]) -> dict[str, float]:
    x, truth = (halved(maps[name].test) for name in DOMAINS)
    found = translate_array(x, *map(open_party, models), Asked(SolverSettings(evaluations=32)))
    pairs = compare(found.translated, truth).means()
    return {
        "psnr": pairs["psnr"],
        "ssim": pairs["ssim"],
        "partner": retrieval.by_pixels(found.translated, truth)["found"],
        "std": white(found.latent)["std"],
    }


if __name__ == "__main__":
    main()

"""The demo's points and pictures: what is sent through two nodes, what is measured of what came back, and its bounds.

Figures come from the files that the client wrote, not from the nodes' own reports. The pictures are test pictures of
places that neither model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ddib_fed import Calibration, Model, Record, evaluate, metrics
from ddib_fed.datasets import sample, shipped_bytes, shipped_domain
from ddib_fed.errors import InternalError
from ddib_fed.evaluation import sheets
from ddib_fed.terminal import number, print_table, say, size

SEED = 1
# The bounds at 48 evaluations per leg: of points of unit standard deviation, and of pictures in dB.
CYCLE_MEDIAN, CYCLE_MEAN, CYCLE_P99 = 3e-4, 1e-3, 5e-3
FLOOR_FACTOR, FLOOR_MARGIN = 1.5, 0.01
LOST_MEDIAN, LOST_MOST = 1.0, 2.0  # dB of a round trip below what the source's autoencoder alone keeps
MSE_FACTOR, SSIM_MARGIN = 1.1, 0.02
"""How much worse than the map alone the bridge may be: so few pictures differ by chance."""
MIXED_RATIO = 1.7
"""Patch correlation of latents, over that of noise: of a share of 0.75 they are less white than those of 1."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure with its upper or lower bound."""

    name: str
    value: float
    bound: float
    sense: Literal["at most", "at least"] = "at most"

    @property
    def ok(self) -> bool:
        """A figure that is no number is out of bounds both ways."""
        return bool(self.value <= self.bound if self.sense == "at most" else self.value >= self.bound)


@dataclass(frozen=True, slots=True)
class DemoPart:
    """One part of the demo: its figures in the report, and their bounds."""

    name: str
    title: str
    figures: Mapping[str, Any]
    bounds: tuple[Bound, ...]

    def show(self) -> None:
        rows = [
            [b.name, number(b.value), f"{b.sense} {number(b.bound)}", "ok" if b.ok else "OUT OF BOUNDS"]
            for b in self.bounds
        ]
        print_table(self.title, ["figure", ">value", ">bound", ""], rows)


def draw_points(path: Path, domain: str, count: int) -> Path:
    np.save(path, sample(domain, count, SEED))
    return path


def measure_points(sent: Path, folder: Path, drawn: Path) -> DemoPart:
    """Compare the files that the client wrote with what it sent and with the target's domain, and draw them."""
    stages = {"source": np.load(sent)}
    for stage, suffix in (("latent", ".latent.npy"), ("target", ".npy"), ("returned", ".returned.npy")):
        stages[stage] = np.load(folder / f"{sent.stem}{suffix}", allow_pickle=False)
    source, latent, target, returned = stages.values()
    record = Record.read(folder / f"{sent.stem}.json")
    if record is None:
        raise InternalError(f"{folder / sent.stem}.json is no record of a translation")
    cycle = metrics.cycle_error(source, returned)
    apart = metrics.distances_to_domain(target, record.target_domain)
    distance, floor = apart["sliced_w2"], apart["sliced_w2_floor"]
    figures = {
        "count": len(source),
        "steps": record.solver.evaluations,
        "cycle": dict(cycle),
        "sliced_w2": distance,
        "sliced_w2_floor": floor,
        "latent": {"mean": float(latent.mean()), "std": float(latent.std())},
        "wire_bytes": record.wire_bytes,
    }
    bounds = (
        Bound("cycle.median", cycle["median"], CYCLE_MEDIAN),
        Bound("cycle.mean", cycle["mean"], CYCLE_MEAN),
        Bound("cycle.p99", cycle["p99"], CYCLE_P99),
        Bound("sliced_w2", distance, FLOOR_FACTOR * floor + FLOOR_MARGIN),
    )
    title = f"{len(source):,} points, {record.solver.evaluations} evaluations a leg"
    error = f"cycle error median {number(cycle['median'])}, p99 {number(cycle['p99'])}"
    caption = f"{title}; {error}; sliced-W2 {number(distance)} (floor {number(floor)})"
    sheets.clouds([*stages.items()], drawn, caption=caption)
    tell_what_crossed([record], latent.nbytes)
    return DemoPart("points", title, figures, bounds)


def tell_what_crossed(records: Sequence[Record], latent_bytes: int) -> None:
    """Print what each institution got, and that latents are invertible."""
    target = records[0].target_institution.partition(".")[0]
    back = sum(record.wire_bytes for record in records) - latent_bytes
    say(
        f"{target} got {size(latent_bytes)} of latents, which look like noise, and sent {size(back)} of translations "
        "and their latents back. Neither saw the other's model or data.",
        "But a latent is an invertible encoding for anyone who has, or can train, a model like the sender's.",
        "",
    )


def draw_pictures(folder: Path, domain: str, count: int) -> Path:
    """Write test pictures of a domain as PNGs; those of another domain show the same places under the same names."""
    (pictures,) = shipped_bytes(domain, ["test"])
    folder.mkdir(parents=True)
    for row in np.linspace(0, len(pictures) - 1, count).round().astype(int):
        Image.fromarray(pictures[row].transpose(1, 2, 0)).save(folder / f"{row:03}.png")
    return folder


def measure_pictures(
    sent: Path, truth: Path, folder: Path, calibration: Calibration, target: Model, sheet: Path
) -> DemoPart:
    """Compare what the client wrote to `folder` with what it sent, with the truth, and with the map alone.

    The map alone and the truth are also shown as the autoencoder of the target's model gives them back.
    """
    measured = evaluate(folder, source=sent, truth=truth, target=target)
    translations, ways = measured.translations, measured.report["ways"]
    records = translations.records
    latents = [np.load(folder / f"{name}.latent.npy") for name in translations.names]
    latent = np.concatenate(latents).astype(np.float32)
    back = np.array([row["cycle_psnr"] for row in measured.report["pictures"]])
    kept = np.array([record.picture and record.picture.autoencoder_psnr for record in records], float)
    lost = metrics.spread(kept - back)
    keys = ("mse", "psnr", "ssim", "sharpness")
    names = ("source", "map", "map_through", "translated", "truth_through")
    source, alone, through, bridge, best = ({key: ways[name][key]["value"] for key in keys} for name in names)
    white = metrics.whiteness(torch.from_numpy(latent))
    correlation, noise = white.latent.correlation, white.noise.correlation
    doubtful, first = [bool(record.doubtful) for record in records], records[0]
    figures: dict[str, Any] = {
        "count": len(records),
        "steps": first.solver.evaluations,
        "soften_sigma": first.soften_sigma,
        "cycle_psnr": metrics.spread(back),
        "below_autoencoder": lost,
        "ways": {"source": source, "map": alone, "bridge": bridge}
        | {"map_through": through, "truth_through": best},
        "latent": {"patch_correlation": correlation, "patch_correlation_noise": noise},
        "doubtful": sum(doubtful),
        "wire_bytes": sum(record.wire_bytes for record in records),
        "calibration": {"sha256": calibration.sha256.hex(), "dial": calibration.dial.model_dump()},
    }
    bounds = (
        Bound("pictures.below_autoencoder.median", lost["median"], LOST_MEDIAN),
        Bound("pictures.below_autoencoder.max", lost["max"], LOST_MOST),
        Bound("pictures.mse", bridge["mse"], MSE_FACTOR * alone["mse"]),
        Bound("pictures.ssim", bridge["ssim"], alone["ssim"] - SSIM_MARGIN, "at least"),
        Bound("pictures.latent.patch_correlation", correlation, MIXED_RATIO * noise),
    )
    stages = {
        f"source: {first.source_domain}": translations.source,
        "the map alone": translations.mapped,
        "map, through the autoencoder": measured.through.get("map_through"),
        f"{first.target_domain}, by the bridge": translations.translated,
        "ground truth": translations.truth,
        "truth, through the autoencoder": measured.through.get("truth_through"),
    }
    domains = (shipped_domain(name) for name in (first.source_domain, first.target_domain))
    # A note common to both domains is written once.
    notes = dict.fromkeys(note for domain in domains for note in domain.note.split("; "))
    said = "; ".join(
        f"{name}: PSNR {one['psnr']:.1f} dB, SSIM {one['ssim']:.2f}, sharpness {one['sharpness']:.2f} of the truth's"
        for name, one in (
            ("The map alone", alone),
            ("the map through the target's autoencoder", through),
            ("the bridge", bridge),
            ("the truth through that autoencoder", best),
        )
    )
    caption = (
        f"A {calibration.kind} of {calibration.map.matrix.size} numbers, which ships; {calibration.dial}. {said}. "
        f"Red frame: doubtful. {'; '.join(notes)}"
    )
    sheets.save_sheet(
        sheet,
        {name: stack for name, stack in stages.items() if stack is not None},
        names=translations.names,
        doubtful=doubtful,
        caption=caption,
    )
    tell_what_crossed(records, latent.nbytes)
    say(
        f"{said}.",
        f"{calibration.dial}: a latent of a share below 1 shows more of its picture (SECURITY.md).",
        "",
    )
    title = f"{len(records)} pictures, {first.solver.evaluations} evaluations a leg"
    return DemoPart("pictures", title, figures, bounds)

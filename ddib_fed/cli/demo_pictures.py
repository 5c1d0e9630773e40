"""The demo's pictures: 16 test pictures through two nodes: there and back, and once more calibrated, with figures.

The pictures show places that neither model was trained on. Figures come from the files that the client
wrote, in [-1, 1], and are reported beside those of baselines without a network and of true noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddib_fed.calibration.record import Calibration
from ddib_fed.cli.delivery import Delivered
from ddib_fed.cli.demo_nodes import Bound, Outcome, Pair, Site
from ddib_fed.cli.output import number, print_table, size
from ddib_fed.client.client import JobRequest
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.data.shipped import ShippedPictures, available, load_shipped, shipped_domain
from ddib_fed.engine.record import Part
from ddib_fed.errors import install_command
from ddib_fed.evaluation.judgement import HistogramMatch, cross_fitted_colour_map, random_pictures, unchanged
from ddib_fed.evaluation.metrics import (
    NEAREST,
    WHITE_RATIO,
    Pictures,
    Spread,
    hits_by_pixels,
    mse,
    noise_statistics,
    spread,
    to_psnr,
    whiteness,
)
from ddib_fed.evaluation.sheets import Stage, save_sheet, to_pixels
from ddib_fed.models.catalogue import shipped_names
from ddib_fed.protocol.messages import Settings
from ddib_fed.terminal import say


@dataclass(frozen=True, slots=True)
class Chosen:
    """Test pictures of a pair; row i of each shows the same place."""

    rows: tuple[int, ...]
    source: Pictures = field(repr=False)
    truth: Pictures = field(repr=False)

    @classmethod
    def evenly(cls, source: ShippedPictures, target: ShippedPictures, count: int) -> Chosen:
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

    chosen: Chosen = field(repr=False)
    sent: tuple[Path, ...]
    delivered: tuple[Delivered, ...] = field(repr=False)
    latent: Pictures = field(repr=False)
    translated: Pictures = field(repr=False)
    returned: Pictures = field(repr=False)

    @classmethod
    def load(cls, chosen: Chosen, sent: Sequence[Path], delivered: Sequence[Delivered]) -> Album:
        """Read the client's results: one for each file, in their order."""
        latents = [np.load(result.files[Part.LATENT], allow_pickle=False) for result in delivered]
        return cls(
            chosen,
            tuple(sent),
            tuple(delivered),
            np.concatenate(latents).astype(np.float32),
            np.stack([read_unit(result.files[Part.TRANSLATION]) for result in delivered]),
            np.stack([read_unit(result.files[Part.RETURNED]) for result in delivered]),
        )


def read_unit(path: Path) -> Pictures:
    """A picture of 8 or 16 bits as (C, H, W) float32 in [-1, 1]."""
    picture = read_image(path)
    top = (1 << picture.bits) - 1
    unit = picture.pixels.astype(np.float32) * np.float32(2.0 / top) - np.float32(1.0)
    return np.ascontiguousarray(unit.transpose(2, 0, 1))


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The figures of calibrated translations; an object of the report."""

    kind: str
    sha256: str
    crossed_bytes: int
    epsilon: float | None
    delta: float | None
    paired_mse: float
    paired_psnr: float
    partner_found: float


@dataclass(frozen=True, slots=True)
class CalibratedPictures:
    """What came of the second translation."""

    calibration: Calibration
    translated: Pictures = field(repr=False)

    def measure(self, chosen: Chosen) -> Calibrated:
        """The figures, beside the truth."""
        made, errors = self.calibration.made, mse(self.translated, chosen.truth)
        return Calibrated(
            kind=self.calibration.kind,
            sha256=self.calibration.sha256.hex(),
            crossed_bytes=made.crossed_bytes,
            epsilon=made.epsilon,
            delta=made.delta,
            paired_mse=float(errors.mean()),
            paired_psnr=float(to_psnr(errors).mean()),
            partner_found=float(np.mean(hits_by_pixels(self.translated, chosen.truth, nearest=NEAREST))),
        )


def what_crossed(calibration: Calibration) -> tuple[str, ...]:
    """What the two institutions gave one another for the calibration, in plain words."""
    made = calibration.made
    source, target = (side.institution.partition(".")[0] for side in (calibration.source, calibration.target))
    numbers = calibration.map.matrix.size
    noise = f"epsilon {number(made.epsilon or 0)}, delta {number(made.delta or 0)}"
    return (
        f"For the calibration {target} sent {source} once {size(made.crossed_bytes)}: one histogram of the colours of",
        f"{made.target_pictures:,} of its pictures, with noise ({noise} for each picture);",
        f"{source} answered with {numbers} numbers, which both signed.",
        "The policies of these two nodes allow a rotation; by default a node allows no calibration.",
    )


def caption(calibration: Calibration) -> str:
    """The same in a sentence, beneath a sheet."""
    made = calibration.made
    return (
        f"Calibrated: a {calibration.kind} of {calibration.map.matrix.size} numbers, found from one histogram of "
        f"{size(made.crossed_bytes)} with noise (epsilon {number(made.epsilon or 0)})."
    )


PAIR = ("satellite", "relief")
"""Source and target domain; ("brain-t1", "brain-t2") is the other pair that ships."""
INSTITUTIONS = ("east.example", "west.example")
PERSON = "bob"
COUNT = 16
STEPS = 48
FOLDER = "pictures"
SHEET = "pictures.png"
TRAIN = f"python -m benchmarks.pretrained_pictures --domain {' '.join(PAIR)}"
RANDOM_DRAWS = 20
"""Of as many pictures as there are; a single draw says little."""
CALIBRATION = "rotation"
"""Kind that the two nodes agree on; the demo's policies allow it, those of a real node allow none."""
CYCLE_MEDIAN = 38.0
CYCLE_MIN = 30.0
"""dB, as is the median."""


def sites(models: Mapping[str, Path]) -> tuple[Site, Site]:
    """The two institutions, with `models` by domain instead of the shipped ones."""
    source, target = (
        Site(name, domain, models.get(domain)) for name, domain in zip(INSTITUTIONS, PAIR, strict=True)
    )
    return source, target


def missing(models: Mapping[str, Path]) -> Outcome | None:
    """The report's entry if pictures or models are missing; None otherwise."""
    absent = sorted({shipped_domain(name).package for name in PAIR if not available(name)})
    if absent:
        why = f"the test pictures come inside {', '.join(absent)}, which is not installed"
        command = install_command("node", " ".join(absent))
        return Outcome("pictures", "", {"skipped": why, "extra": "node", "command": command})
    untrained = [name for name in PAIR if name not in models and name not in shipped_names()]
    if untrained:
        why = f"no model of {' or '.join(untrained)} ships with this release"
        return Outcome("pictures", "", {"skipped": why, "command": TRAIN})
    return None


@dataclass(frozen=True, slots=True)
class Baselines:
    """MSE to the truth, in [-1, 1], of translations that need no network."""

    source: float
    histogram: float
    random: float
    colour_map: float

    @classmethod
    def measure(cls, chosen: Chosen, source: ShippedPictures, target: ShippedPictures) -> Baselines:
        """Measure it for the chosen pictures."""
        truth = chosen.truth
        count, channels = len(truth), truth.shape[1]
        drawn = [random_pictures(target.train, count, seed=seed) for seed in range(RANDOM_DRAWS)]
        mapped = cross_fitted_colour_map(source.test, target.test)[list(chosen.rows)]
        matched = HistogramMatch.fit(source.train, target.train)(chosen.source)
        return cls(
            source=float(mse(unchanged(chosen.source, channels), truth).mean()),
            histogram=float(mse(matched, truth).mean()),
            random=float(np.mean([mse(pictures, truth).mean() for pictures in drawn])),
            colour_map=float(mse(mapped, truth).mean()),
        )


@dataclass(frozen=True, slots=True)
class Whiteness:
    """Whiteness of the sent latents."""

    mean: float
    std: float
    patch_correlation: float
    patch_correlation_noise: float
    per_picture: float
    per_picture_noise: float

    @classmethod
    def measure(cls, album: Album) -> Whiteness:
        """Measure it for the latents that the source node sent."""
        measured = whiteness(torch.from_numpy(album.latent))
        one = (1, *album.latent.shape[1:])
        return cls(
            mean=measured.latent.mean,
            std=measured.latent.std,
            patch_correlation=measured.latent.correlation,
            patch_correlation_noise=measured.noise.correlation,
            per_picture=float(np.mean([r.provenance.latent.correlation for r in album.delivered])),
            per_picture_noise=noise_statistics(one).correlation,
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of pictures; the report's object."""

    count: int
    steps: int
    source: str
    target: str
    soften_sigma: float
    cycle_psnr: Spread
    paired_mse: float
    baseline_mse: Baselines
    latent: Whiteness
    doubtful: int
    wire_bytes: int
    items: tuple[Mapping[str, Any], ...]
    calibrated: Calibrated

    def bounds(self) -> tuple[Bound, ...]:
        """Their bounds: round trip, translation better than chance, latents near noise, calibrated better than not."""
        return (
            Bound.at_least("pictures.cycle_psnr.median", self.cycle_psnr["median"], CYCLE_MEDIAN),
            Bound.at_least("pictures.cycle_psnr.min", self.cycle_psnr["min"], CYCLE_MIN),
            Bound.at_most("pictures.paired_mse", self.paired_mse, self.baseline_mse.random),
            Bound.at_most(
                "pictures.latent.patch_correlation",
                self.latent.patch_correlation,
                WHITE_RATIO * self.latent.patch_correlation_noise,
            ),
            Bound.at_most("pictures.calibrated.paired_mse", self.calibrated.paired_mse, self.paired_mse),
        )


def translate_pictures(pair: Pair) -> Outcome:
    """Translate test pictures there and back, calibrate, translate them again, and measure and draw the results."""
    source, target = load_shipped(pair.source.domain), load_shipped(pair.target.domain)
    chosen = Chosen.evenly(source, target, COUNT)
    paths = chosen.write(pair.out / FOLDER / "in")
    shown = f"{pair.out / FOLDER / 'in'}/*.png"
    request = JobRequest(pair.to, Settings(evaluations=STEPS), cycle=True, keep_latent=True)
    delivered = pair.translate(paths, request, pair.out / FOLDER / "translated", shown=shown)
    album = Album.load(chosen, paths, delivered)
    print_hops(album, pair.person)
    calibrated = translate_calibrated(pair, paths, shown)
    figures = measure(album, Baselines.measure(chosen, source, target), calibrated)
    draw(album, calibrated, figures, pair.out / SHEET)
    return outcome(figures, pair.out / SHEET)


def translate_calibrated(pair: Pair, paths: Sequence[Path], shown: str) -> CalibratedPictures:
    """Calibrate the two nodes, and translate the same files one way."""
    calibration = pair.calibrate(CALIBRATION)
    request = JobRequest(pair.to, Settings(evaluations=STEPS))
    delivered = pair.translate(paths, request, pair.out / FOLDER / "calibrated", shown=shown)
    translated = np.stack([read_unit(result.files[Part.TRANSLATION]) for result in delivered])
    say("", *what_crossed(calibration), "")
    return CalibratedPictures(calibration, translated)


def outcome(figures: Figures, sheet: Path) -> Outcome:
    title = f"{figures.count} pictures, {figures.steps} evaluations a leg"
    return Outcome("pictures", title, asdict(figures), figures.bounds(), (sheet,))


def measure(album: Album, baseline: Baselines, calibrated: CalibratedPictures) -> Figures:
    """Compare the results with the sent pictures and with the truth."""
    chosen, provenance = album.chosen, album.delivered[0].provenance
    cycle = to_psnr(mse(album.returned, chosen.source))
    paired = mse(album.translated, chosen.truth)
    items = tuple(
        {
            "file": result.file,
            "cycle_psnr": float(back),
            "paired_mse": float(error),
            "doubtful": bool(result.provenance.doubtful),
        }
        for result, back, error in zip(album.delivered, cycle, paired, strict=True)
    )
    return Figures(
        count=len(items),
        steps=provenance.solver.evaluations,
        source=provenance.source_domain,
        target=provenance.target_domain,
        soften_sigma=provenance.soften_sigma,
        cycle_psnr=spread(cycle),
        paired_mse=float(paired.mean()),
        baseline_mse=baseline,
        latent=Whiteness.measure(album),
        doubtful=sum(bool(item["doubtful"]) for item in items),
        wire_bytes=sum(result.provenance.wire_bytes for result in album.delivered),
        items=items,
        calibrated=calibrated.measure(chosen),
    )


def draw(album: Album, calibrated: CalibratedPictures, figures: Figures, path: Path) -> None:
    """Source, translation, calibrated translation, truth and returned picture, one column per picture."""
    chosen = album.chosen
    stages = (
        Stage(f"source: {figures.source}", chosen.source),
        Stage(f"{figures.target}, uncalibrated", album.translated),
        Stage(f"{figures.target}, calibrated", calibrated.translated),
        Stage("ground truth", chosen.truth),
        Stage("back, uncalibrated", album.returned),
    )
    said = (shipped_domain(name).note.split("; ") for name in (figures.source, figures.target))
    notes = dict.fromkeys(
        note for part in said for note in part
    )  # a note common to both domains is written once
    save_sheet(
        path,
        stages,
        names=[f"{row}" for row in chosen.rows],
        doubtful=[bool(result.provenance.doubtful) for result in album.delivered],
        caption=f"{caption(calibrated.calibration)} Red frame: the uncalibrated one is doubtful. {'; '.join(notes)}",
    )


def print_hops(album: Album, person: str) -> None:
    """Table of each hop and who could see it; an institution is named by its first label."""
    provenances = [result.provenance for result in album.delivered]
    first = provenances[0]
    source, target = (name.partition(".")[0] for name in (first.source_institution, first.target_institution))
    seconds = {stage: f"{sum(p.seconds.get(stage, 0.0) for p in provenances):.1f}" for stage in first.seconds}
    sent, latent = sum(path.stat().st_size for path in album.sent), album.latent.nbytes
    back = sum(p.wire_bytes for p in provenances) - latent
    fetched = sum(path.stat().st_size for result in album.delivered for path in result.files.values())
    steps, count = first.solver.evaluations, len(provenances)
    rows = [
        [f"{person} > {source}", f"{count} PNGs, under numbers", size(sent), "", source],
        [source, f"soften, encode: {steps} evaluations", "", seconds.get("encode", ""), source],
        [f"{source} > {target}", "the latents", size(latent), "", "both"],
        [target, f"decode, encode: 2 x {steps}", "", seconds.get("remote", ""), target],
        [f"{target} > {source}", "translations and their latents", size(back), "", "both"],
        [source, f"decode: {steps}, compare", "", seconds.get("return", ""), source],
        [f"{source} > {person}", "translations, returns, latents", size(fetched), "", source],
    ]
    print_table("What happened at each hop", ["hop", "what", ">bytes", ">seconds", "seen by"], rows)
    _say(source, target, first.soften_sigma)


def _say(source: str, target: str, sigma: float) -> None:
    """The table in plain words."""
    lines = (
        "Seconds are those of all pictures together; while one is decoded the next is being encoded.",
        f"{target} saw latents, which look like noise, and what it made of them: never a picture of {source}'s.",
        f"Neither saw the other's model or training data. Before encoding, {source} mixed noise of {number(sigma)}",
        "times the data's spread into each picture, by a secret of its own, so that flat regions become noise too.",
        "But a latent is an invertible encoding for anyone who has, or can train, a model like the sender's.",
        "",
    )
    say(*lines)

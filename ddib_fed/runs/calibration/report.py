"""What is known of a calibration: figures with and without it, of pictures that it was not fitted to.

distance     of the source's colours, in the target's units, from the target's: sliced W2 over pixels
whiteness    patch correlation of the latents, in multiples of true noise's
round trip   PSNR of pictures that were translated there and back
truth        PSNR, SSIM and retrieval of translations whose true picture is known
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddib_fed.bridge.arrays import PLAIN, Asked, Stages, translate_array
from ddib_fed.bridge.calibration.fitting.evaluation import colour_distance as sliced_distance
from ddib_fed.bridge.calibration.record import Figure
from ddib_fed.bridge.local_party import LocalParty
from ddib_fed.metrics.bootstrap import Resamples, resample
from ddib_fed.metrics.latents import whiteness
from ddib_fed.metrics.pictures import Pictures, psnr, ssim
from ddib_fed.metrics.retrieval import NEAREST, hits_by_pixels
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.runs.calibration.pictures import Anchors, spaced

PIXELS = 16
"""Taken from each picture: neighbouring pixels say the same."""
COLOURED = 1_000
"""Pictures of a side whose colours are compared."""
DISTANCE_DRAWS = 40
SEED = 0

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure with the calibration, and beside it without."""

    name: str
    calibrated: Figure
    without: Figure | None = None
    gain: Figure | None = None
    alone: Figure | None = None
    rising: bool = True
    judges: bool = False

    @property
    def verdict(self) -> str:
        """What the interval of the gain says: better, worse, or no difference; empty where there is none."""
        if self.gain is None:
            return ""
        if self.gain.low <= 0 <= self.gain.high:
            return "no difference"
        return "better" if (self.gain.low > 0) == self.rising else "worse"


@dataclass(frozen=True, slots=True)
class Ways:
    """The parties of a comparison."""

    target: LocalParty
    calibrated: LocalParty
    rotation: ChannelMap | None
    without: LocalParty | None


def colour_distance(
    source: Pictures,
    target: Pictures,
    channel_map: ChannelMap,
    units: tuple[Normalisation, Normalisation],
) -> Compared:
    """How far the source's colours are from the target's, in the target's units."""
    parts = zip(units, (source, target), strict=True)
    own, other = (_pixels(side.apply(spaced(x, COLOURED))) for side, x in parts)
    reference = other.reshape(-1, other.shape[2])
    rng = np.random.default_rng(SEED)
    draws = [rng.integers(len(own), size=len(own)) for _ in range(DISTANCE_DRAWS)]

    mapped = np.moveaxis(channel_map.apply(np.moveaxis(own, 2, 1)), 1, 2)
    whole = [_distance(colours, reference) for colours in (mapped, own)]
    draws_of = np.array(
        [[_distance(colours[rows], reference) for colours in (mapped, own)] for rows in draws]
    )
    return Compared(
        "distance of colours",
        _around(whole[0], draws_of[:, 0]),
        _around(whole[1], draws_of[:, 1]),
        gain=_around(whole[0] - whole[1], draws_of[:, 0] - draws_of[:, 1]),
        rising=False,
    )


def there_and_back(
    pictures: Pictures, ways: Ways, asked: Asked = PLAIN, *, on_progress: OnProgress | None = None
) -> tuple[Stages, Stages | None]:
    """Pictures there and back: with the calibration, and without."""
    parties = [(ways.calibrated, ways.rotation)] + ([] if ways.without is None else [(ways.without, None)])
    found = []
    for number, (party, rotation) in enumerate(parties):

        def tell(done: int, total: int, number: int = number) -> None:
            if on_progress is not None:
                on_progress(number * total + done, len(parties) * total)

        leg = replace(asked, cycle=True, calibration=rotation)
        found.append(translate_array(pictures, party, ways.target, leg, on_progress=tell))
    return found[0], found[1] if len(found) > 1 else None


def unpaired(pictures: Pictures, stages: tuple[Stages, Stages | None]) -> list[Compared]:
    """Whiteness and round trip of translations with and without the calibration."""
    ratios, backs = [], []
    for each in filter(None, stages):
        assert each.back is not None  # `there_and_back` asks for it
        ratio = whiteness(torch.from_numpy(each.latent)).ratio
        ratios.append(Figure(value=ratio, low=ratio, high=ratio))
        backs.append(psnr(each.back, pictures))
    return [
        Compared(
            "latents: patch correlation / noise's",
            ratios[0],
            ratios[1] if len(ratios) > 1 else None,
            rising=False,
        ),
        compared("round trip, dB", backs, resample(len(pictures))),
    ]


def paired(stages: tuple[Stages, Stages | None], mapped: Pictures, anchors: Anchors) -> list[Compared]:
    """PSNR, SSIM and retrieval of translations whose truth is known."""
    drawn, truth = resample(len(anchors.target), anchors.clusters), anchors.target
    sets = [each.translated for each in filter(None, stages)]
    figures: dict[str, Callable[[Pictures, Pictures], ArrayLike]] = {
        "PSNR, dB": psnr,
        "SSIM": ssim,
        f"true partner among the {NEAREST} nearest": hits_by_pixels,
    }
    return [
        compared(
            name,
            [of(x, truth) for x in sets],
            drawn,
            alone=of(mapped, truth),
            judges=of is not hits_by_pixels,
        )
        for name, of in figures.items()
    ]


def map_alone(
    pictures: Pictures, channel_map: ChannelMap, units: tuple[Normalisation, Normalisation]
) -> Pictures:
    """Pictures (N, C, H, W) in [-1, 1] of the source's domain with their channels mapped, without any network."""
    own, other = units
    found: Pictures = np.clip(other.undo(channel_map.apply(own.apply(pictures))), -1.0, 1.0)
    return found


def compared(
    name: str,
    values: Sequence[ArrayLike],
    drawn: Resamples,
    *,
    alone: ArrayLike | None = None,
    judges: bool = False,
) -> Compared:
    """Figures of each picture, with the calibration and without if there are two, as means with intervals."""
    each = [np.asarray(value, np.float64) for value in values]
    means = [Figure(**drawn.mean(value)) for value in each]
    gain = Figure(**drawn.mean(each[0] - each[1])) if len(each) > 1 else None
    beside = None if alone is None else Figure(**drawn.mean(alone))
    without = means[1] if len(means) > 1 else None
    return Compared(name, means[0], without, gain=gain, alone=beside, judges=judges)


def _pixels(units: NDArray[np.floating]) -> NDArray[np.float64]:
    flat = units.reshape(*units.shape[:2], -1)
    places = np.linspace(0, flat.shape[2] - 1, PIXELS).round().astype(int)
    return np.moveaxis(flat[:, :, places], 1, 2).astype(np.float64)


def _around(value: float, draws: NDArray[np.float64]) -> Figure:
    low, high = np.quantile(draws, [0.025, 0.975]) - (draws.mean() - value)
    return Figure(value=value, low=float(low), high=float(high))


def _distance(colours: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    return sliced_distance(colours.reshape(-1, colours.shape[2]), reference)

"""Turns pictures into their translations by two models of pictures, in batches: what commands and measurements call.

The rule: pictures here are float32 in [-1, 1]; each model's own units stay inside. What is random about a picture
(softening, the noise of a sample) follows from a seed and the picture alone, so it is the same in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ddib_fed.bridge.picture_side import (
    UNGUIDED,
    Floats,
    Guidance,
    Labels,
    PictureSide,
    require_class,
)
from ddib_fed.bridge.step_noise import check_ancestral
from ddib_fed.diffusion import bridge
from ddib_fed.diffusion.bridge import DEFAULT_SETTINGS
from ddib_fed.diffusion.interpolation import Way, interpolate
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.solvers import Draw
from ddib_fed.errors import NotFinite, PictureMisfit, SettingsInvalid, ShapeMismatch

__all__ = [
    "BATCH",
    "UNGUIDED",
    "Floats",
    "Guidance",
    "Labels",
    "OnProgress",
    "PictureSide",
    "Translated",
    "check_legs",
    "clipped",
    "interpolate_pictures",
    "sample_pictures",
    "translate_pictures",
    "uncertainty",
]

# Told (network evaluations done, in all), over all legs and batches.
OnProgress = Callable[[int, int], None]
BATCH = 16
FARTHEST = 3.0
"""A number beyond it lies a whole range outside of [-1, 1]: the pictures are of another scale, as 0 to 255."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A translation, perhaps with the way back; each array (N, C, H, W), float32.

    Attributes:
        latent: Of the source, by the source's model.
        translated: By the target's model, cut to [-1, 1].
        latent_again: Of the translation before it was cut, by the target's model; None one way.
        back: By the source's model, cut to [-1, 1]; None one way.
    """

    latent: Floats
    translated: Floats
    latent_again: Floats | None = None
    back: Floats | None = None


def translate_pictures(
    x: Floats,
    source: PictureSide,
    target: PictureSide,
    settings: SolverSettings = DEFAULT_SETTINGS,
    *,
    soften: float | None = None,
    depth: float | None = None,
    seed: int = 0,
    cycle: bool = False,
    batch: int = BATCH,
    on_progress: OnProgress | None = None,
) -> Translated:
    """Translate pictures of the source's domain to the target's and, for a cycle, back.

    Args:
        x: (N, C, H, W) in [-1, 1].
        source: Where from.
        target: Where to.
        settings: How each leg is integrated.
        soften: Noise level to which pictures are diffused before encoding; None for the source model's own. What was
            decoded is not softened on its way back.
        depth: Fraction of the schedules' angles to go, in (0, 1]; below 1 the latent keeps some of the picture; None
            for the settings' own.
        seed: Of the softening's noise, and of the noise that decoding draws where the settings say so.
        cycle: Whether to come back.
        batch: Pictures that are integrated together.
        on_progress: Told (evaluations done, in all); what it raises ends the work.

    Raises:
        ShapeMismatch: The pictures are not those of the models.
        PictureMisfit: They are of another scale than [-1, 1].
        NotFinite: There is a NaN or an infinity in them, or in what a model answers.
        SettingsInvalid: Settings that do not exist or do not fit.
    """
    _check_pictures(x, source, target)
    settings = _to_depth(settings, depth)
    sigma = check_legs(source, target, settings, soften=soften)
    tell = _Counter(settings.evaluations * (4 if cycle else 2) * -(-len(x) // batch), on_progress)
    parts: list[tuple[Floats, ...]] = []
    for rows in _slices(len(x), batch):
        digests = [_digest(picture, seed) for picture in x[rows]]
        start, end = source.encoding(rows, len(x), sigma), target.decoding(rows, len(x))
        latent, there = bridge.translate(
            source.to_model(x[rows]),
            start,
            end,
            settings,
            noise=source.noise(digests, "soften"),
            on_step=tell,
            draw=target.draw(digests, "there"),
        )
        part = [latent.cpu().numpy(), clipped(target.from_model(there))]
        if cycle:
            start, end = target.encoding(rows, len(x)), source.decoding(rows, len(x))
            draw = source.draw(digests, "back")
            again, back = bridge.translate(there, start, end, settings, on_step=tell, draw=draw)
            part += [again.cpu().numpy(), clipped(source.from_model(back))]
        parts.append(tuple(part))
    return Translated(*(np.concatenate(stage) for stage in zip(*parts, strict=True)))


def check_legs(
    source: PictureSide,
    target: PictureSide,
    settings: SolverSettings,
    *,
    soften: float | None = None,
    depth: float | None = None,
) -> float:
    """Check settings for both sides without computing anything; gives what the source softens by.

    Raises:
        SettingsInvalid: Settings that do not exist or do not fit, or guidance without a class.
        ShapeMismatch: The models are of different sizes or numbers of channels.
    """
    if source.shape != target.shape:
        names = [f"{side.bundle.manifest.name} {side.shape}" for side in (source, target)]
        raise ShapeMismatch(
            f"pictures cannot cross: {names[0]}, {names[1]}",
            hint="both models must be of one size and number of channels",
        )
    require_class(target)
    settings = _to_depth(settings, depth)
    for side in (source, target):
        check_ancestral(settings, side.bundle.manifest, guided=side.guidance.classifier is not None)
    sigma = source.bundle.manifest.soften_sigma if soften is None else soften
    plan(settings, source.bundle.schedule, soften_sigma=sigma)
    plan(settings, target.bundle.schedule)
    return sigma


def clipped(x: Floats) -> Floats:
    """Pictures cut to [-1, 1], as files hold them."""
    return np.clip(x, -1.0, 1.0)


def uncertainty(
    x: Floats,
    source: PictureSide,
    target: PictureSide,
    settings: SolverSettings = DEFAULT_SETTINGS,
    *,
    times: int,
    soften: float | None = None,
    depth: float | None = None,
    seed: int = 0,
    batch: int = BATCH,
    on_progress: OnProgress | None = None,
) -> Floats:
    """How much translations differ between fresh softenings of the same picture.

    Args:
        x: (N, C, H, W) in [-1, 1].
        source: Where from.
        target: Where to.
        settings: How each leg is integrated.
        times: Softenings of each picture, at least 2.
        soften: As in `translate_pictures`; what it comes to must be above 0.
        depth: As in `translate_pictures`.
        seed: Of the first softening; the others follow.
        batch: As in `translate_pictures`.
        on_progress: As in `translate_pictures`.

    Returns:
        Standard deviation over the translations (N, H, W), root mean square over the channels, in units of [-1, 1].

    Raises:
        SettingsInvalid: No softening, or fewer than two.
        ShapeMismatch, NotFinite: As `translate_pictures`.
    """
    level = check_legs(source, target, settings, soften=soften, depth=depth)
    if times < 2 or level == 0.0:
        raise SettingsInvalid(
            "uncertainty is the spread over at least 2 softenings, and without softening there is none",
            hint="soften by 0.05, for example",
        )
    total, squares = np.zeros(x.shape), np.zeros(x.shape)
    whole = settings.evaluations * 2 * -(-len(x) // batch) * times
    tell = _Counter(whole, on_progress)
    for turn in range(times):
        found = translate_pictures(
            x,
            source,
            target,
            settings,
            soften=soften,
            depth=depth,
            seed=seed + turn,
            batch=batch,
            on_progress=tell,
        ).translated.astype(np.float64)
        total += found
        squares += found**2
    variance = np.maximum(squares - total**2 / times, 0.0) / (times - 1)
    deviation: Floats = np.sqrt(variance.mean(axis=1)).astype(np.float32)
    return deviation


def sample_pictures(
    side: PictureSide,
    count: int,
    seed: int = 0,
    settings: SolverSettings = DEFAULT_SETTINGS,
    *,
    first: int = 0,
    batch: int = BATCH,
    on_progress: OnProgress | None = None,
) -> Floats:
    """Draw pictures from a model: those numbered `first` to `first + count - 1` of a seed, (count, C, H, W) in [-1, 1].

    Raises:
        SettingsInvalid: Settings that do not exist or do not fit the model's schedule, or guidance without a class.
        NotFinite: The model answers with NaN or infinity.
    """
    require_class(side)
    check_ancestral(settings, side.bundle.manifest, guided=side.guidance.classifier is not None)
    tell = _Counter(settings.evaluations * -(-count // batch), on_progress)
    parts = []
    for rows in _slices(count, batch):
        numbers = range(first + rows.start, first + rows.stop)
        names = [f"{seed} {number}".encode() for number in numbers]
        latent, draw = side.noise(names, "sample"), side.draw(names, "sample")
        parts.append(clipped(_decode(latent, side, rows, count, settings, tell, draw)))
    return np.concatenate(parts)


def interpolate_pictures(
    pair: Floats,
    source: PictureSide,
    target: PictureSide,
    weights: Sequence[float],
    settings: SolverSettings = DEFAULT_SETTINGS,
    *,
    way: Way = "slerp",
    soften: float | None = None,
    depth: float | None = None,
    seed: int = 0,
    batch: int = BATCH,
    on_progress: OnProgress | None = None,
) -> Floats:
    """Encode two pictures by the source's model and decode the latents between them by the target's.

    Args:
        pair: (2, C, H, W) in [-1, 1].
        source: Where from.
        target: Where to; the source itself for pictures between the two.
        weights: Where on the way, each in [0, 1].
        settings: How each leg is integrated.
        way: On the sphere or on the straight line.
        soften: As in `translate_pictures`.
        depth: As in `translate_pictures`.
        seed: As in `translate_pictures`.
        batch: As in `translate_pictures`.
        on_progress: As in `translate_pictures`.

    Returns:
        (number of weights, C, H, W) in [-1, 1].

    Raises:
        ShapeMismatch, NotFinite, SettingsInvalid: As `translate_pictures`, and for weights outside [0, 1].
    """
    _check_pictures(pair, source, target)
    require_class(target)
    settings = _to_depth(settings, depth)
    tell = _Counter(settings.evaluations * (1 + -(-len(weights) // batch)), on_progress)
    both = slice(0, 2)
    level = source.bundle.manifest.soften_sigma if soften is None else soften
    start = source.encoding(both, 2, level)
    latents = bridge.encode(
        source.to_model(pair),
        start.denoiser,
        start.schedule,
        settings,
        cond=start.cond,
        on_step=tell,
        soften_sigma=level,
        noise=source.noise([_digest(picture, seed) for picture in pair], "soften"),
    )
    between = interpolate(latents[0], latents[1], weights, way=way)
    parts = [
        clipped(_decode(between[rows], target, rows, len(weights), settings, tell))
        for rows in _slices(len(weights), batch)
    ]
    return np.concatenate(parts)


def _decode(
    latent: Tensor,
    side: PictureSide,
    rows: slice,
    count: int,
    settings: SolverSettings,
    tell: OnProgress,
    draw: Draw | None = None,
) -> Floats:
    end = side.decoding(rows, count)
    x = bridge.decode(latent, end.denoiser, end.schedule, settings, cond=end.cond, on_step=tell, draw=draw)
    return side.from_model(x)


def _to_depth(settings: SolverSettings, depth: float | None) -> SolverSettings:
    return settings if depth is None else replace(settings, depth=depth)


class _Counter:
    """Network evaluations of all legs and batches, told as one count."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total, self._done, self._on_progress = total, 0, on_progress

    def __call__(self, done: int, of: int) -> None:
        del done, of
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _slices(count: int, batch: int) -> Iterator[slice]:
    for start in range(0, count, batch):
        yield slice(start, min(start + batch, count))


def _digest(picture: Floats, seed: int) -> bytes:
    """Names a picture's content and the seed."""
    little = np.ascontiguousarray(picture, dtype="<f4")
    return hashlib.sha256(f"{seed} {little.shape} ".encode() + little.tobytes()).digest()


def _check_pictures(x: Floats, source: PictureSide, target: PictureSide) -> None:
    for side in (source, target):
        if x.ndim != 4 or x.shape[1:] != side.shape or len(x) == 0:
            raise ShapeMismatch(
                f"pictures of shape {x.shape[1:]}; {side.bundle.manifest.name} takes {side.shape}",
                hint="both models must be of one size and number of channels",
            )
    if not np.isfinite(x).all():
        raise NotFinite("there are pictures with NaN or infinity")
    low, high = float(x.min()), float(x.max())
    if max(-low, high) > FARTHEST:
        raise PictureMisfit(
            f"pictures from {low:g} to {high:g} are not in [-1, 1]",
            hint="ddib_fed.samples.images.read_fitted brings a file into [-1, 1]",
            facts={"holds": f"{low:g} to {high:g}", "takes": "-1 to 1"},
        )

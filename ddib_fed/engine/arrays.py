"""Arrays of samples through local parties: translations, samples and interpolations, repeatable by a seed.

What is random about a sample (softening, the noise of a step) follows from the seed and the sample alone, or for points
from its row, so it is the same in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ddib_fed.diffusion.bridge import interpolate
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.local_party import LocalParty, only
from ddib_fed.engine.model import (
    Array,
    DomainModel,
    check_calibration,
    check_decoding,
    check_encoding,
    check_given,
)
from ddib_fed.engine.party import (
    Failed,
    Item,
    Labels,
    Leg,
    Noise,
    Stage,
    ToDecode,
    ToEncode,
    Translated,
    translate,
)
from ddib_fed.engine.softening import picture_draw, point_draw, seeded_noise
from ddib_fed.errors import DdibError, ShapeMismatch
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.latent import Latent
from ddib_fed.models.units import ChannelMap

# Told (network evaluations done, in all), over all legs and batches.
OnProgress = Callable[[int, int], None]
DEFAULT_SETTINGS = SolverSettings()


@dataclass(frozen=True, slots=True)
class Asked:
    settings: SolverSettings = DEFAULT_SETTINGS
    source_class: Labels = None
    target_class: Labels = None
    guidance: Guidance = UNGUIDED
    soften: float | None = None
    seed: int = 0
    cycle: bool = False
    calibration: ChannelMap | None = None

    def leg(self, on_step: Callable[[int, Stage, int, int], None] | None = None) -> Leg:
        return Leg(
            self.settings,
            self.guidance,
            self.soften,
            self.cycle,
            on_step=on_step,
            calibration=self.calibration,
        )


PLAIN = Asked()


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of a translation; each array (K, *sample_shape), float32, of the K samples that were not refused."""

    rows: tuple[int, ...]
    latent: Array
    translated: Array
    latent_again: Array | None = None
    back: Array | None = None
    failed: Mapping[int, DdibError] = field(default_factory=dict)


def check_translation(source: LocalParty, target: LocalParty, asked: Asked) -> float:
    """Check a translation without computing anything."""
    models = source.model, target.model
    if models[0].sample_shape != models[1].sample_shape:
        named = [f"{model.manifest.name} {model.sample_shape}" for model in models]
        raise ShapeMismatch(
            f"samples cannot cross: {named[0]}, {named[1]}",
            hint="both models must be of one size and number of channels",
        )
    settings, guidance = asked.settings, asked.guidance
    check_encoding(source.model, settings, asked.source_class, guidance, asked.soften)
    check_calibration(source.model, asked.leg().calibration)
    check_decoding(target.model, settings, asked.target_class, guidance)
    if asked.cycle:
        back = replace(settings, encoder="ode")
        check_encoding(target.model, back, asked.target_class, guidance, 0.0)
        check_decoding(source.model, settings, asked.source_class, guidance)
    return source.model.sigma(asked.soften)


def translate_array(
    x: Array,
    source: LocalParty,
    target: LocalParty,
    asked: Asked = PLAIN,
    *,
    on_progress: OnProgress | None = None,
    refuse: bool = True,
) -> Stages:
    """Translate samples of the source's domain to the target's and, for a cycle, back."""
    check_translation(source, target, asked)
    check_given(source.model, x)
    legs = 4 if asked.cycle else 2
    tell = Counter(asked.settings.evaluations * legs * turns(source, len(x)), on_progress)
    done: list[Translated] = []
    failed: dict[int, DdibError] = {}
    for outcome in translate(
        source, target, _items(x, source.model, target.model, asked), asked.leg(tell.step)
    ):
        if isinstance(outcome, Failed):
            if refuse:
                raise outcome.error
            failed[outcome.number] = outcome.error
        else:
            done.append(outcome)
    return _stages(done, x, source.model, target.model, failed, cycle=asked.cycle)


def draw_samples(
    party: LocalParty,
    count: int,
    asked: Asked = PLAIN,
    *,
    first: int = 0,
    on_progress: OnProgress | None = None,
) -> Array:
    """Draw pictures from a model: those numbered `first` to `first + count - 1` of the seed."""
    check_decoding(party.model, asked.settings, asked.target_class, asked.guidance)
    tell = Counter(asked.settings.evaluations * turns(party, count), on_progress)

    def latents() -> Iterator[ToDecode]:
        for number in range(count):
            name = f"{asked.seed} {first + number}".encode()
            latent = Latent.from_array(seeded_noise(party.model, name, "sample"))
            label = _label_of(asked.target_class, number)
            yield ToDecode(number, latent, label, picture_draw(party.model, name, "sample"))

    leg = replace(asked.leg(tell.step), round_trip=False, calibration=None)
    outcomes = party.decode_each(latents(), leg)
    return clipped(np.concatenate([only(outcome).samples for outcome in outcomes]))


def interpolate_pictures(
    pair: Array,
    source: LocalParty,
    target: LocalParty,
    weights: Sequence[float],
    asked: Asked = PLAIN,
    *,
    on_progress: OnProgress | None = None,
) -> Array:
    """Encode two pictures by the source's model and decode the latents between them by the target's."""
    check_translation(source, target, asked)
    check_given(source.model, pair)
    tell = Counter(asked.settings.evaluations * (turns(source, 2) + turns(target, len(weights))), on_progress)
    leg = replace(asked.leg(tell.step), round_trip=False)
    items = (
        ToEncode(item.number, item.samples, item.source_class, item.noise)
        for item in _items(pair, source.model, target.model, asked)
    )
    ends = [torch.from_numpy(only(each).latent.data[0].copy()) for each in source.encode_each(items, leg)]
    between = interpolate(ends[0], ends[1], weights).numpy()
    latents = (
        ToDecode(row, Latent.from_array(latent[None]), asked.target_class)
        for row, latent in enumerate(between)
    )
    decoded = target.decode_each(latents, replace(leg, calibration=None))
    return clipped(np.concatenate([only(each).samples for each in decoded]))


def clipped(x: Array) -> Array:
    return np.clip(x, -1.0, 1.0)


class Counter:
    """Network evaluations of all legs and batches as one count."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total, self._done, self._on_progress = total, 0, on_progress

    def __call__(self, done: int = 0, of: int = 0) -> None:
        del done, of
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)

    def step(self, number: int, stage: Stage, done: int, of: int) -> None:
        del number, stage
        self(done, of)


def turns(party: LocalParty, rows: int) -> int:
    alone = party.executor.beside and party.model.is_picture
    return rows if alone else -(-rows // party.executor.rows)


def _items(x: Array, source: DomainModel, target: DomainModel, asked: Asked) -> Iterator[Item]:
    if not source.is_picture:
        yield item_of(0, x, source, target, asked)
        return
    for row in range(len(x)):
        own, other = _label_of(asked.source_class, row), _label_of(asked.target_class, row)
        labelled = replace(asked, source_class=own, target_class=other)
        yield item_of(row, x[row : row + 1], source, target, labelled)


def item_of(number: int, samples: Array, source: DomainModel, target: DomainModel, asked: Asked) -> Item:
    """One picture (1, C, H, W), or one set of points (N, D), with the noise that follows from the seed."""
    classes = asked.source_class, asked.target_class
    if not source.is_picture:
        there, back = (point_draw(asked.seed, leg, samples.shape[1]) for leg in (0, 1))
        return Item(number, samples, *classes, there=there, back=back)
    digest = _digest(samples[0], asked.seed)
    draws = picture_draw(target, digest, "there"), picture_draw(source, digest, "back")
    return Item(number, samples, *classes, _softening(source, digest), *draws)


def _stages(
    done: Sequence[Translated],
    x: Array,
    source: DomainModel,
    target: DomainModel,
    failed: Mapping[int, DdibError],
    *,
    cycle: bool,
) -> Stages:
    def stack(arrays: list[Array]) -> Array:
        return np.concatenate(arrays) if arrays else np.zeros((0, *source.sample_shape), np.float32)

    rows = tuple(each.item.number for each in done) if source.is_picture else tuple(range(len(x)))
    cut = clipped if target.is_picture else (lambda samples: samples)
    again = [each.decoded.again.latent.data for each in done if each.decoded.again is not None]
    back = [each.back.samples for each in done if each.back is not None]
    return Stages(
        rows,
        stack([each.encoded.latent.data for each in done]),
        cut(stack([each.decoded.samples for each in done])),
        stack(again) if cycle else None,
        cut(stack(back)) if cycle else None,
        dict(failed),
    )


def _label_of(labels: Labels, row: int) -> int | None:
    return labels if labels is None or isinstance(labels, int) else labels[row]


def _softening(model: DomainModel, digest: bytes) -> Noise:
    return lambda _: seeded_noise(model, digest, "soften")


def _digest(picture: Array, seed: int) -> bytes:
    little = np.ascontiguousarray(picture, dtype="<f4")
    return hashlib.sha256(f"{seed} {little.shape} ".encode() + little.tobytes()).digest()

"""Arrays of samples through local parties: what is random follows from a seed and the sample (or its row) alone."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ddib_fed.diffusion.plans import COMPAT_GRID, DEFAULT_SETTINGS, SolverSettings
from ddib_fed.diffusion.schedule import PublicLevels, schedule_from_config
from ddib_fed.engine.local_party import LocalParty, only
from ddib_fed.engine.model import DomainModel, check_calibration, check_decoding, check_encoding
from ddib_fed.engine.party import Array, Labels, Leg, OnStep, RowDraw, ToDecode, ToTranslate
from ddib_fed.errors import ShapeMismatch, UsageError
from ddib_fed.extensions import extension
from ddib_fed.latent import Latent
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.units import ChannelMap
from ddib_fed.record import UNGUIDED, Guidance

# Told (network evaluations done, in all), over all legs and batches.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ArraySettings:
    settings: SolverSettings = DEFAULT_SETTINGS
    source_class: Labels = None
    target_class: Labels = None
    guidance: Guidance = UNGUIDED
    soften: float | None = None
    seed: int = 0
    cycle: bool = False
    calibration: ChannelMap | None = None
    volume_sha256: bytes = b""
    """Of the volume whose slices the pictures are, to be softened by one draw of noise; empty for one draw each."""

    def leg(self, on_step: OnStep | None = None) -> Leg:
        calibration = self.calibration
        return Leg(
            self.settings, self.guidance, self.soften, self.cycle, on_step=on_step, calibration=calibration
        )


PLAIN = ArraySettings()


def check_translation(source: LocalParty, target: LocalParty, asked: ArraySettings) -> None:
    """Check a translation without computing anything."""
    models = source.model, target.model
    if models[0].latent_shape != models[1].latent_shape:
        named = [f"{model.manifest.name} {model.latent_shape}" for model in models]
        raise ShapeMismatch(
            f"samples cannot cross: {named[0]}, {named[1]}",
            hint="both models must be of one size and number of channels",
        )
    settings, guidance = asked.settings, asked.guidance
    check_encoding(source.model, settings, asked.source_class, asked.soften)
    check_calibration(source.model, asked.leg().calibration)
    check_decoding(target.model, settings, asked.target_class, guidance)
    if asked.cycle:
        back = replace(settings, share=1.0)
        check_encoding(target.model, back, asked.target_class, 0.0)
        check_decoding(source.model, settings, asked.source_class, guidance)


def draw_samples(
    party: LocalParty, count: int, asked: ArraySettings = PLAIN, *, on_progress: OnProgress | None = None
) -> Array:
    """Draw samples from a model: the first `count` of the seed, pictures in [-1, 1]."""
    check_decoding(party.model, asked.settings, asked.target_class, asked.guidance)
    tell = counting(asked.settings.evaluations * turns(party, count), on_progress)
    labels = asked.target_class

    def latents() -> Iterator[ToDecode]:
        for number in range(count):
            name = f"{asked.seed} {number}".encode()
            latent = Latent.from_array(seeded_noise(party.model, name, "sample"))
            label = labels if labels is None or isinstance(labels, int) else labels[number]
            yield ToDecode(number, latent, label, picture_draw(party.model, name, "sample"))

    leg = replace(asked.leg(tell), round_trip=False, calibration=None)
    outcomes = party.decode_each(latents(), leg)
    samples: Array = np.concatenate([only(outcome).samples for outcome in outcomes])
    return samples.clip(-1.0, 1.0) if party.model.is_picture else samples


def counting(total: int, on_progress: OnProgress | None) -> Callable[..., None]:
    """Return what counts network evaluations of all legs and batches, to be called after each."""
    done = itertools.count(1)
    return lambda *_: None if on_progress is None else on_progress(next(done), total)


def turns(party: LocalParty, rows: int) -> int:
    """Return how many trajectories integrate this number of samples."""
    return rows if party.model.is_picture else -(-rows // party.executor.rows)


def item_of(
    number: int, samples: Array, source: DomainModel, target: DomainModel, asked: ArraySettings
) -> ToTranslate:
    """Pair one picture (1, C, H, W), or one set of points (N, D), with the noise that follows from the seed."""
    classes = asked.source_class, asked.target_class
    if not source.is_picture:
        forward, backward = (point_draw(asked.seed, leg, samples.shape[1]) for leg in (0, 1))
        return ToTranslate(number, samples, *classes, forward=forward, backward=backward)
    little = np.ascontiguousarray(samples[0], dtype="<f4")
    digest = hashlib.sha256(f"{asked.seed} {little.shape} ".encode() + little.tobytes()).digest()
    draws = picture_draw(target, digest, "there"), picture_draw(source, digest, "back")
    volume = hashlib.sha256(f"{asked.seed} volume ".encode() + asked.volume_sha256).digest()
    seed = volume if asked.volume_sha256 else digest
    return ToTranslate(number, samples, *classes, lambda *_: seeded_noise(source, seed, "soften"), *draws)


DRAWN_ROWS = 1024  # rows are drawn in blocks, so that a range of rows costs nothing for the rows before it


def point_draw(seed: int, leg: int, dim: int) -> RowDraw:
    """Return the noise of points of `dim` coordinates."""

    def draw(step: int, rows: slice) -> Array:
        first, end = rows.start // DRAWN_ROWS, -(-rows.stop // DRAWN_ROWS)
        each = [np.random.default_rng([seed, leg, step, block]) for block in range(first, end)]
        drawn = np.concatenate([one.standard_normal((DRAWN_ROWS, dim), np.float32) for one in each])
        return drawn[rows.start - first * DRAWN_ROWS :][: rows.stop - rows.start]

    return draw


def seeded_noise(model: DomainModel, digest: bytes, purpose: str) -> Array:
    """Draw standard normal (1, *latent_shape), one seed for each digest, purpose and model."""
    mixed = hashlib.sha256(digest + f" {purpose} {model.bundle.digest}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:8], "little"))
    return torch.randn((1, *model.latent_shape), generator=generator).numpy()


def picture_draw(model: DomainModel, digest: bytes, purpose: str) -> RowDraw:
    return lambda step, rows: seeded_noise(model, digest, f"{purpose} step {step}")[rows]


def public_sampling(
    flags: str, manifests: Sequence[Manifest], evaluations: int | None = None
) -> tuple[SolverSettings, bool | None]:
    """Return how the public code samples models by its flags, and whether they say to clip."""
    sampling: dict[str, Any] = extension("ddib_fed.importers", "guided").parse_sampling(flags)
    names = ("noise_schedule", ""), ("diffusion_steps", 0), ("timestep_respacing", "")
    levels = PublicLevels(*(sampling.get(name, default) for name, default in names))
    if evaluations is None and levels.respacing:
        kept = {levels.kept(schedule_from_config(manifest.schedule)) for manifest in manifests}
        if len(kept) > 1:
            counts = " and ".join(map(str, sorted(kept)))
            raise UsageError(
                f"--timestep_respacing {levels.respacing} keeps {counts} of the two models' diffusion steps",
                hint="both must use the same number: for example ddim50",
            )
        evaluations = kept.pop()
    own = [manifest.schedule.steps for manifest in manifests if manifest.schedule.steps]
    settings = SolverSettings(
        "ddim",
        0,
        evaluations or levels.diffusion_steps or min([SolverSettings().evaluations, *own]),
        COMPAT_GRID,
        levels=levels,
        eta=sampling.get("eta", 0.0),
        ancestral=sampling.get("use_ddpm", not sampling.get("use_ddim", True)),
    )
    return settings, sampling.get("clip_denoised")

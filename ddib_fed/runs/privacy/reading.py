"""What an attacker reads from latents: by correlation, by surrogate inverters, and by a model of his own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.metrics import bootstrap, retrieval
from ddib_fed.metrics.attacks.inversion import Inverter, fit_inverter, fit_point_inverter
from ddib_fed.metrics.attacks.reading import correlation_matrix, first_by_correlation
from ddib_fed.metrics.pictures import compare
from ddib_fed.models.privacy import Figure, Reading
from ddib_fed.runs.privacy.along import Array, latents_along
from ddib_fed.training.pictures.sources import array_source
from ddib_fed.training.run import train
from ddib_fed.training.settings.config import PictureTrainConfig, PointTrainConfig

Say = Callable[[str], None]
DEPTHS = (0.85, 0.7, 0.5)
STEPS = 150
"""Of the training of a convolutional inverter; latents of full depth alone."""
DECODING = SolverSettings(evaluations=24)


@dataclass(frozen=True, slots=True)
class Data:
    """Samples in the units of the data, each (N, *sample_shape)."""

    known: Array
    attacked: Array


def readings(
    model: DomainModel, data: Data, *, evaluations: int, surrogate_s: float, seed: int, say: Say
) -> Iterator[Reading]:
    """One of each kind of latent: softened and not, of each depth, and of the encoder mixed where it works."""
    own = model.manifest.soften_sigma
    attacker = None
    if surrogate_s > 0:
        say(f"the attacker trains a model of {model.manifest.domain}")
        attacker = trained(model, data.known, surrogate_s, seed)
    for sigma in (own, 0.0) if own else (0.0,):
        for encoder in encoders(model) if sigma == own else ("ode",):
            say(f"latents of the encoder {encoder}, softened {sigma:g}")
            depths = DEPTHS if encoder == "ode" and model.is_picture else ()
            known, attacked = (
                latents_along(
                    model,
                    model.normalise(samples),
                    depths=depths,
                    encoder=encoder,
                    evaluations=evaluations,
                    sigma=sigma,
                    seed=seed + turn,
                )
                for turn, samples in enumerate((data.known, data.attacked))
            )
            for depth in sorted(known, reverse=True):
                found = _reading(
                    model, data, (known[depth], attacked[depth]), attacker if depth == 1.0 else None, seed
                )
                yield Reading(soften_sigma=sigma, depth=depth, encoder=encoder, **found)


def encoders(model: DomainModel) -> Sequence[str]:
    return ("ode", "mixed") if model.frame() is not None else ("ode",)


def trained(model: DomainModel, known: Array, seconds: float, seed: int) -> DomainModel:
    """The attacker's model of the domain, trained on what he knows for so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        if model.is_picture:
            cut = max(8, len(known) // 10)
            source = array_source("attacker", known[cut:], known[:cut])
            size = model.sample_shape[-1]
            config = PictureTrainConfig(size=size, time_s=seconds, seed=seed, samples=4)
            return DomainModel(train(config, out, source=source))
        np.save(Path(folder) / "known.npy", known)
        points = PointTrainConfig(data=Path(folder) / "known.npy", time_s=seconds, seed=seed)
        return DomainModel(train(points, out))


def _reading(
    model: DomainModel, data: Data, latents: tuple[Array, Array], attacker: DomainModel | None, seed: int
) -> dict[str, object]:
    known, attacked = (model.normalise(samples) for samples in (data.known, data.attacked))
    drawn = bootstrap.resample(len(attacked))
    found = correlation_matrix(latents[1], attacked)
    inverter = _fitted(model, latents[0], known, seed)
    read = inverter.inverse(latents[1])
    quality, hits = _judged(model, model.denormalise(read), data.attacked)
    answer: dict[str, object] = {
        "correlation": Figure(**drawn.mean(np.diagonal(found))),
        "found_by_correlation": Figure(**drawn.mean(first_by_correlation(found))),
        "surrogate": inverter.name,
        "read": Figure(**drawn.mean(quality)),
        "found_by_reading": Figure(**drawn.mean(hits)),
    }
    if attacker is not None:
        laid = attacker.plan(DECODING)
        parts = torch.split(torch.from_numpy(latents[1]), 16 if model.is_picture else 4_096)
        back = torch.cat([integrate(laid.decoder(part), attacker.denoiser()) for part in parts])
        quality, hits = _judged(model, attacker.denormalise(back.numpy()), data.attacked)
        answer |= {"model_read": Figure(**drawn.mean(quality)), "found_by_model": Figure(**drawn.mean(hits))}
    return answer


def _fitted(model: DomainModel, latents: Array, known: Array, seed: int) -> Inverter:
    if model.is_picture:
        return fit_inverter(latents, known, steps=STEPS, seed=seed)
    return fit_point_inverter(latents, known)


def _judged(model: DomainModel, read: Array, truth: Array) -> tuple[np.ndarray, np.ndarray]:
    if model.is_picture:
        cut = np.clip(read, -1.0, 1.0).astype(np.float32)
        return compare(cut, truth).psnr, retrieval.hits_by_pixels(cut, truth, nearest=1)
    errors = np.sqrt(np.square((read - truth) / truth.std(axis=0)).mean(axis=1))
    return errors, retrieval.ranks(read, truth) < 1

"""Measures the allowances of a bundle's latents and writes gate.json beside its weights."""

from __future__ import annotations

from pathlib import Path

from ddib_fed.bridge.judging.measuring import Samples, Told, measure_allowances, unmeasurable
from ddib_fed.bridge.model import DomainModel
from ddib_fed.errors import InputError
from ddib_fed.models.allowances import GATE_FILE, Allowances
from ddib_fed.models.bundle import load_bundle, put_beside
from ddib_fed.training.own_samples import Counts, own_samples

PICTURES = 300
"""Pictures that are encoded, where there are so many."""
SHARE = 0.05
"""Of a run's CPU seconds, that its allowances may take; the fewest that are needed are encoded anyway."""


def put_allowances(
    folder: Path,
    data: Path | None = None,
    *,
    command: str = "",
    device: str = "cpu",
    seed: int = 0,
    tell: Told | None = None,
) -> Allowances:
    """Measure what the latents of the bundle in `folder` look like, and write it beside its weights."""
    bundle = load_bundle(folder, without=[GATE_FILE])
    model = DomainModel(bundle, device=device)
    _require(model, PICTURES)
    _, _, held_out = own_samples(bundle.manifest, data, Counts(fit=2, choose=2, held_out=PICTURES))
    _require(model, len(held_out))
    found = measure_allowances(model, held_out, command=command, seed=seed, tell=tell)
    put_beside(folder, GATE_FILE, found.text())
    return found


def _require(model: DomainModel, count: int) -> None:
    if why := unmeasurable(model, count):
        raise InputError(
            f"the usual latents of {model.manifest.name} cannot be measured: {why}",
            hint=f"ddib model show {model.manifest.name} says what the model is; --data names a folder of pictures",
        )


def after_training(folder: Path, samples: Samples, *, command: str, spent_s: float) -> str:
    """The same at the end of a run, within a small share of what the run took; why not, where it cannot be."""
    model = DomainModel(load_bundle(folder))
    if why := unmeasurable(model, len(samples)):
        return why
    found = measure_allowances(model, samples[:PICTURES], command=command, within_s=SHARE * spent_s)
    put_beside(folder, GATE_FILE, found.text())
    return ""

"""Measures the allowances of a bundle's latents and writes gate.json beside its weights."""

from __future__ import annotations

from pathlib import Path

from ddib_fed.bridge.judging.measuring import Samples, Told, measure_allowances
from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.errors import InputError
from ddib_fed.models.allowances import GATE_FILE, Allowances
from ddib_fed.models.bundle import load_bundle, put_beside
from ddib_fed.training.tuning.samples import Counts, own_samples

PICTURES, POINTS = 300, 8_192
"""Samples that are encoded, where there are so many."""
SHARE, LEAST_S = 0.05, 1.0
"""Of a run's CPU seconds, and CPU seconds at least, that its allowances may take."""


def put_allowances(
    folder: Path,
    data: Path | None = None,
    *,
    command: str = "",
    device: str = "cpu",
    seed: int = 0,
    tell: Told | None = None,
) -> Allowances:
    """Measure what the latents of the bundle in `folder` look like, and write it beside its weights.

    Args:
        folder: The bundle. Its digest does not change.
        data: A folder of pictures of its domain, or a .npy file of points, that it was not trained on; None for the
            data of a shipped domain, which it was not trained on as far as there are such.
        command: Noted in the file.
        device: Where to compute.
        seed: Of softening and of the choice of sets.
        tell: Progress.

    Raises:
        ModelNotFound, BundleInvalid: There is no usable bundle.
        UsageError, InputError: As `own_samples`; or too few samples, or a model for whose latents no figures are
            defined.
    """
    bundle = load_bundle(folder, without=[GATE_FILE])
    model = DomainModel(bundle, device=device)
    count = PICTURES if model.is_picture else POINTS
    _, aside, held_out = own_samples(bundle.manifest, data, Counts(fit=2, choose=2, held_out=count))
    found = measure_allowances(model, held_out, command=command, seed=seed, tell=tell)
    if found is None:
        raise InputError(
            f"{len(aside) + len(held_out)} samples are too few, or the latents of {bundle.manifest.name} have no "
            "figures to be held against",
            hint="give at least 50 pictures of 16 pixels or more, or 1,100 points of at most 8 dimensions; models with "
            "classes are not measured",
        )
    put_beside(folder, GATE_FILE, found.text())
    return found


def after_training(
    folder: Path, samples: Samples | None, *, command: str, spent_s: float
) -> Allowances | None:
    """The same at the end of a run, within a small share of what the run took; None where that does not suffice.

    Args:
        folder: The new bundle.
        samples: Held out, (N, *sample_shape) in the units of the data; None for none.
        command: Noted in the file.
        spent_s: CPU seconds of the run.
    """
    if samples is None or not len(samples):
        return None
    model = DomainModel(load_bundle(folder))
    most = PICTURES if model.is_picture else POINTS
    within = max(LEAST_S, SHARE * spent_s)
    found = measure_allowances(model, samples[:most], command=command, within_s=within)
    if found is not None:
        put_beside(folder, GATE_FILE, found.text())
    return found

"""The privacy report of a bundle: attacks on its owner's own data, stored beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddib_fed.bridge.model import DomainModel
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.errors import InputError
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.carried import carried_domain
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.privacy import Copies, Membership, PrivacyReport
from ddib_fed.runs.privacy.along import Array
from ddib_fed.runs.privacy.reading import Data, Say, readings
from ddib_fed.runs.privacy.training_data import copies_of, membership_of
from ddib_fed.training.tuning.samples import Counts, own_samples

FEWEST = 32
SEED = 41


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is attacked, and how hard."""

    data: Path | None = None
    training: Path | None = None
    samples: int = 256
    evaluations: int = 24
    surrogate_s: float = 60.0
    seed: int = SEED
    command: str = ""


def privacy_report(bundle: Bundle, wanted: Wanted, *, say: Say) -> PrivacyReport:
    """Attack the latents and samples of a model."""
    model, manifest = DomainModel(bundle), bundle.manifest
    known, attacked, others = _data(manifest, wanted)
    if min(map(len, (known, attacked, others))) < FEWEST:
        raise InputError(
            f"{len(attacked) + len(known)} samples are too few for an attack",
            hint=f"give {3 * FEWEST} or more",
        )
    found = tuple(
        readings(
            model,
            Data(known, attacked),
            evaluations=wanted.evaluations,
            surrogate_s=wanted.surrogate_s,
            seed=wanted.seed,
            say=say,
        )
    )
    members = _training(manifest, wanted)
    calibrated = manifest.normalisation.calibrated
    return PrivacyReport(
        weights_sha256=manifest.weights_sha256,
        command=wanted.command,
        sample_kind=manifest.sample_kind,
        calibration="" if calibrated is None else "its own map",
        known=len(known),
        attacked=len(attacked),
        surrogate_s=wanted.surrogate_s,
        readings=found,
        membership=() if members is None else _membership(model, members, others, wanted, say),
        copies=None if members is None else _copies(model, members, others, wanted, say),
    )


def _data(manifest: Manifest, wanted: Wanted) -> tuple[Array, Array, Array]:
    """The attacker's samples, those that are attacked, and some that the model was not trained on."""
    few = wanted.samples // 2
    if wanted.data is None and (name := _carried_pictures(manifest)) is not None:
        shipped = load_shipped(name)
        # Heads are held out by the handful: their test slabs stand in, and the attacker knows training pictures.
        enough = len(shipped.held_out) >= 2 * FEWEST
        known, others = (shipped.held_out, shipped.held_out) if enough else (shipped.train, shipped.test)
        return _some(known, wanted.samples), _some(shipped.test, few), _some(others, wanted.samples)
    counts = Counts(fit=2, choose=wanted.samples, held_out=few)
    _, known, attacked = own_samples(manifest, wanted.data, counts)
    return known, attacked, known


def _some(samples: Array, count: int) -> Array:
    chosen: Array = samples[
        np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int))
    ]
    return chosen


def _membership(
    model: DomainModel, members: Array, others: Array, wanted: Wanted, say: Say
) -> tuple[Membership, ...]:
    own = model.manifest.soften_sigma
    chosen = members[np.linspace(0, len(members) - 1, min(len(others), len(members))).round().astype(int)]
    found = []
    for sigma in (own, 0.0) if own else (0.0,):
        say(f"membership, softened {sigma:g}")
        found.append(
            membership_of(
                model, chosen, others, sigma=sigma, evaluations=wanted.evaluations, seed=wanted.seed
            )
        )
    return tuple(found)


def _copies(model: DomainModel, members: Array, others: Array, wanted: Wanted, say: Say) -> Copies | None:
    if not model.is_picture:
        return None
    say("training pictures in what the model draws")
    return copies_of(model, members, others, count=min(64, len(others)), seed=wanted.seed)


def _training(manifest: Manifest, wanted: Wanted) -> Array | None:
    """Samples that the model was trained on; None where nobody says which. Those of synthetic domains are endless."""
    if wanted.training is not None:
        counts = Counts(fit=2, choose=2, held_out=4 * wanted.samples)
        return own_samples(manifest, wanted.training, counts)[2]
    if wanted.data is None and (name := _carried_pictures(manifest)) is not None:
        return load_shipped(name).train
    return None


def _carried_pictures(manifest: Manifest) -> str | None:
    return carried_domain(manifest) if manifest.sample_kind == "picture" else None

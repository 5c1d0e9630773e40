"""The baselines of `ddib evaluate` that need more than the judged folders: other pairs, and the target's model.

colour map on k pairs     quadratic in the channels of a pixel, k = 2, 8, 32
small supervised network  on the same k pairs
oracle                    the truth, encoded and decoded by the target's own model: what its latents can hold
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddib_fed.bridge.arrays import translate_array
from ddib_fed.bridge.local_party import open_party
from ddib_fed.errors import InputError, ShapeMismatch
from ddib_fed.metrics.judgement import OnStep
from ddib_fed.metrics.pictures import Pictures
from ddib_fed.metrics.references.baselines import COUNTS_OF_PAIRS, paired
from ddib_fed.models.bundle import load_bundle
from ddib_fed.reports.translations import Translations, by_name
from ddib_fed.runs.supervised import supervised

MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class FurtherBaselines:
    """What they are made from; called with the judged pictures."""

    pairs: tuple[Path, Path] | None = None
    networks: bool = False
    target_model: Path | None = None

    def __call__(self, found: Translations, tell: OnStep) -> dict[str, Pictures]:
        made: dict[str, Pictures] = {}
        if self.pairs is not None:
            if found.source is None:
                raise InputError(
                    "baselines on pairs translate the sources, which are not there",
                    hint="add --source FOLDER",
                )
            asked, pairs = np.clip(found.source, -1.0, 1.0), self._read(found)
            made |= paired(asked, pairs)
            for count in COUNTS_OF_PAIRS if self.networks else ():
                if count <= len(pairs[0]):
                    tell(f"a network on {count} pairs")
                    made[f"supervised_{count}"] = supervised(pairs[0][:count], pairs[1][:count], asked)
        if self.target_model is not None and found.truth is not None:
            tell("oracle")
            made["oracle"] = _oracle(self.target_model, np.clip(found.truth, -1.0, 1.0))
        return made

    def _read(self, found: Translations) -> tuple[Pictures, Pictures]:
        """The first pairs by name, as many as the largest count."""
        assert self.pairs is not None
        first, second = (by_name(folder) for folder in self.pairs)
        missing = sorted(first.keys() ^ second.keys())
        if missing or not first:
            raise InputError(
                f"{self.pairs[0]} and {self.pairs[1]} hold no pairs by name: "
                + (", ".join(missing[:MOST_NAMED]) or "no pictures"),
                hint="name both pictures of one thing alike, and remove what has no partner",
            )
        judged = sorted(first.keys() & set(found.names))
        if judged:
            raise InputError(
                f"{len(judged)} pairs have the names of judged pictures, first {judged[0]}",
                hint="pairs for a baseline must be other pictures than those that are judged",
            )
        names = sorted(first)[: max(COUNTS_OF_PAIRS)]
        own = found.source_scale.stack([first[name] for name in names], (), _unseen)
        other = found.scale.stack([second[name] for name in names], (), _unseen)
        return np.clip(own, -1.0, 1.0), np.clip(other, -1.0, 1.0)


def _oracle(model: Path, truth: Pictures) -> Pictures:
    party = open_party(load_bundle(model))
    shape = tuple(party.model.sample_shape)
    if shape != truth.shape[1:]:
        raise ShapeMismatch(
            f"the truths are {truth.shape[1:]}, {model} is a model of {shape}",
            hint=f"--size {shape[-1]}, or the target's model",
        )
    return translate_array(truth, party, party).translated


def _unseen(path: Path, fits: bool) -> None:
    del path, fits

"""Arrays through two parties, with every stage of the translation: for tests and benchmarks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddib_fed.engine.arrays import ArraySettings, check_translation, item_of
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.engine.model import check_given
from ddib_fed.engine.party import Failed, TranslatedItem, translate

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stages:
    """Arrays (N, *sample_shape)."""

    latent: Array
    translated: Array
    latent_again: Array | None = None
    back: Array | None = None


def translate_array(
    x: Array, source: LocalParty, target: LocalParty, asked: ArraySettings | None = None
) -> Stages:
    """Translate samples of the source's domain to the target's and, for a cycle, back."""
    asked = asked or ArraySettings()
    check_translation(source, target, asked)
    check_given(source.model, x)
    rows = [x[row : row + 1] for row in range(len(x))] if source.model.is_picture else [x]
    items = (item_of(row, samples, source.model, target.model, asked) for row, samples in enumerate(rows))
    done: list[TranslatedItem] = []
    for outcome in translate(source, target, items, asked.leg()):
        if isinstance(outcome, Failed):
            raise outcome.error
        done.append(outcome)
    bound = 1.0 if target.model.is_picture else np.inf
    again = [each.decoded.again.latent.data for each in done if each.decoded.again is not None]
    back = [each.back.samples for each in done if each.back is not None]
    return Stages(
        np.concatenate([each.encoded.latent.data for each in done]),
        np.concatenate([each.decoded.samples for each in done]).clip(-bound, bound),
        np.concatenate(again) if again else None,
        np.concatenate(back).clip(-bound, bound) if back else None,
    )

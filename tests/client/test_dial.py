"""The dial: which setting is proposed, of translations whose nearness to the map follows from the setting."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.calibration.record import CalibratedSide, Dial
from ddib_fed.client.dial import measure_dial
from ddib_fed.errors import PolicyDenied
from ddib_fed.evaluation.translations import Translations
from ddib_fed.models.units import Normalisation
from tests.calibration.examples import calibration
from tests.runs.tiny_models import pictures


@pytest.mark.parametrize(
    ("noises", "cool", "proposed"),
    [
        ({1.0: 0.3, 0.75: 0.1, 0.5: 0.05}, 0.9, (0.75, 0.9)),
        ({1.0: 0.3, 0.75: 0.25, 0.5: 0.05}, 0.9, (0.5, 0.9)),
        ({1.0: 0.05, 0.75: 0.1, 0.5: 0.2}, 2.0, (1.0, 1.0)),
        ({1.0: 0.3, 0.75: 0.2, 0.5: None}, 0.9, (0.75, 0.9)),
    ],
    ids=["most of the gain", "little of it", "no gain", "a share that the target refuses"],
)
def test_the_largest_share_with_most_of_the_gain_is_proposed(noises, cool, proposed) -> None:
    """And the lower temperature where it costs no structure; a blend brings results nearer to the map."""
    side, source = CalibratedSide(domain="photos", units=Normalisation()), pictures(12, channels=3)
    made = calibration(source=side, target=side.model_copy(update={"domain": "maps"}))
    mapped, generator = made.alone(source), np.random.default_rng(0)

    def translate(dial: Dial) -> tuple[Translations, np.ndarray]:
        if noises[dial.share] is None:
            raise PolicyDenied("a share of 0.5")
        noise = noises[dial.share] * (1.0 if dial.temperature == 1.0 else cool)
        found = mapped + noise * generator.standard_normal(mapped.shape)
        latents = generator.standard_normal(mapped.shape).astype(np.float32)
        names = tuple(map(str, range(len(source))))
        stacks = {"translated": found.astype(np.float32), "source": source, "truth": None, "back": source}
        return Translations(names, (), **stacks, domain=None, notes=(), mapping=made.alone), latents

    rows, dial = measure_dial(translate, made, list(noises), None)
    assert (dial.share, dial.temperature, dial.blend) == (*proposed, 0.3)
    assert rows[-1].map_ssim > max(
        row.map_ssim for row in rows if row.dial.share == dial.share and not row.dial.blend
    )
    assert rows[0].read is not None
    assert rows[0].round_trip == 120.0

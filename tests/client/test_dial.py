"""The dial: which setting is proposed, of translations whose nearness to the map follows from the setting."""

import numpy as np
import pytest

from ddib_fed.calibration.record import CalibratedSide, Calibration, Dial
from ddib_fed.client.client import Client
from ddib_fed.client.dial import compare_settings, translating, write_pictures
from ddib_fed.data.fitting import PictureRule
from ddib_fed.errors import DiskFull, InternalError, PeerUnreachable, PolicyDenied
from ddib_fed.evaluation.translations import Translations
from ddib_fed.models.units import Normalisation
from ddib_fed.record import Record
from ddib_fed.v1 import translation_pb2 as pb
from tests.calibration.examples import calibration
from tests.client.scripted_source import TARGET
from tests.runs.tiny_models import pictures


def own() -> tuple[np.ndarray, Calibration]:
    """Own pictures, and a calibration of their domain."""
    side = CalibratedSide(domain="photos", units=Normalisation())
    return pictures(12, channels=3), calibration(
        source=side, target=side.model_copy(update={"domain": "maps"})
    )


def translations(translated: np.ndarray, source: np.ndarray, made: Calibration) -> Translations:
    """All of the pictures, with a round trip that lost nothing."""
    stacks = {"translated": translated.astype(np.float32), "source": source, "truth": None, "back": source}
    names, records = tuple(map(str, range(len(source)))), (Record(),) * len(source)
    return Translations(names, records, **stacks, domain=None, notes=(), mapping=made.alone)


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
    source, made = own()
    mapped, generator = made.alone(source), np.random.default_rng(0)

    def translate(dial: Dial) -> tuple[Translations, np.ndarray]:
        if noises[dial.share] is None:
            raise PolicyDenied("a share of 0.5")
        noise = noises[dial.share] * (1.0 if dial.temperature == 1.0 else cool)
        found = mapped + noise * generator.standard_normal(mapped.shape)
        latents = generator.standard_normal(mapped.shape).astype(np.float32)
        return translations(found, source, made), latents

    rows, dial = compare_settings(translate, list(noises), None)
    assert (dial.share, dial.temperature, dial.blend) == (*proposed, 0.3)
    assert rows[-1].map_ssim > max(
        row.map_ssim for row in rows if row.dial.share == dial.share and not row.dial.blend
    )
    assert rows[0].read is not None
    assert rows[0].round_trip == 120.0


def test_settings_are_compared_over_the_pictures_that_all_of_them_have() -> None:
    """A share that loses nothing but the hardest pictures, which it refuses, is not better for it."""
    source, made = own()
    hard = np.arange(12) % 5 == 0
    noise = (
        np.random.default_rng(0).standard_normal(source.shape) * np.where(hard, 1.0, 0.1)[:, None, None, None]
    )

    def translate(dial: Dial) -> tuple[Translations, np.ndarray]:
        found = translations(made.alone(source) + noise, source, made)
        kept = np.flatnonzero(~hard | (dial.share == 1.0))
        return found.of(kept), source[kept]

    rows, dial = compare_settings(translate, (1.0, 0.75), None)
    assert dial.share == 1.0
    assert {row.pictures for row in rows} == {9}
    assert rows[0].map_ssim == rows[1].map_ssim


@pytest.mark.parametrize(
    ("left", "shares", "compared"),
    [({1.0: 12, 0.75: 2, 0.5: 2}, {1.0}, 12), ({1.0: 12, 0.75: 7, 0.5: 4}, {1.0, 0.75}, 7)],
)
def test_a_share_that_loses_more_than_half_of_the_pictures_is_refused(left, shares, compared) -> None:
    """Of the pictures of the first share, not of what the shares before left."""
    source, made = own()

    def translate(dial: Dial) -> tuple[Translations, np.ndarray]:
        kept = range(left[dial.share])
        return translations(made.alone(source), source, made).of(kept), source[kept]

    rows, dial = compare_settings(translate, tuple(left), None)
    assert {row.dial.share for row in rows} == shares >= {dial.share}
    assert {row.pictures for row in rows} == {compared}


@pytest.mark.parametrize("error", [PeerUnreachable, DiskFull, InternalError])
def test_an_error_that_is_no_refusal_ends_the_measurement(error) -> None:
    """No share is proposed because a peer was away for a minute."""
    source, made = own()

    def translate(dial: Dial) -> tuple[Translations, np.ndarray]:
        if dial.share < 1.0:
            raise error
        return translations(made.alone(source), source, made), source

    with pytest.raises(error):
        compare_settings(translate, (1.0, 0.75, 0.5), None)


@pytest.mark.parametrize("error", [PeerUnreachable, PolicyDenied])
def test_jobs_that_fail_raise_the_error_that_they_failed_with(error, north, tmp_path) -> None:
    """Whether one item or none of them says it."""

    def failed(answer: pb.GetJobResponse) -> None:
        answer.job.state = pb.JOB_STATE_FAILED
        answer.job.error.reason = error.reason
        for item in answer.job.items:
            item.state = pb.ITEM_STATE_RECEIVED

    north.script.pictures, north.script.forge = True, failed
    paths = write_pictures(pictures(2), PictureRule(1, 8, 8, "resize", 0, 255), tmp_path)
    with Client.for_command(north.profile_path) as client, pytest.raises(error):
        translating(client, TARGET, paths, tmp_path, own()[1])(Dial())

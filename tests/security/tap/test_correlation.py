"""Latents of the shipped model, which are noise: their correlation with the pictures, and what is left of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.shipped import load_shipped
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.gate import Softener
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.party import Leg, ToEncode
from ddib_fed.errors import LatentNotGaussian
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.bundle import pretrained
from tests.conftest import Evidence
from tests.security.tap.bench import Bench
from tests.security.tap.judge import Judge, strongest, threshold
from tests.security.tap.search import Found, Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.promise("latents")]

HONEST, SENT, EVALUATIONS = 24, 3, 24
SHARES = np.linspace(0.05, 0.95, 19)


@dataclass
class Honest:
    """Pictures that are not sent, in the model's units, and their latents."""

    pictures: list[np.ndarray]
    latents: list[np.ndarray]

    @property
    def threshold(self) -> float:
        return threshold(self.latents, self.pictures)

    def least_share(self) -> float:
        """The least a for which sqrt(1 - a^2) latent + a picture passes the threshold for nine pictures of ten."""
        for share in SHARES:
            caught = [
                strongest((math.sqrt(1 - share**2) * z + share * x).reshape(-1), x.reshape(-1))
                > self.threshold
                for z, x in zip(self.latents, self.pictures, strict=True)
            ]
            if np.mean(caught) >= 0.9:
                return float(share)
        return 1.0


@pytest.fixture(scope="module")
def honest() -> Honest:
    party = ServingParty(bundle := pretrained("satellite"), device="cpu", threads=1)
    drawn = load_shipped("satellite").test
    raw = drawn[np.linspace(0, len(drawn) - 1, HONEST).astype(int)].astype(np.float32)
    softener, leg = Softener(bytes(32), bundle.digest), Leg(SolverSettings(evaluations=EVALUATIONS))
    try:
        items = [
            ToEncode(
                number, each[None], None, lambda picture: softener.for_picture(picture, "elsewhere.example")
            )
            for number, each in enumerate(raw)
        ]
        latents = {}
        for item in items:
            with suppress(
                LatentNotGaussian
            ):  # the gate refuses one honest latent of a hundred: it does not cross
                latents[item.number] = party.encode(item, leg).latent.data[0]
    finally:
        party.close()
    assert len(latents) >= HONEST - 2
    return Honest(list(party.model.normalise(raw[list(latents)])), list(latents.values()))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    pixels = to_pixels(load_shipped("satellite").train[:SENT])
    with tempfile.TemporaryDirectory(prefix="ddib-shipped-") as folder:
        made = Bench.shipped(Path(folder), {f"picture-{n}": each for n, each in enumerate(pixels)})
        try:
            yield made
        finally:
            made.close()


def crossed(bench: Bench, planted: str = "") -> Traffic:
    """One run of north with a leak, or without."""
    before = len(bench.tap.connections)
    with bench.running(bench.pair.south), bench.running(bench.pair.north, planted):
        bench.translate(cycle=False)
    return bench.kept(before)


def correlated(bench: Bench, honest: Honest, traffic: Traffic) -> list[Found]:
    """What the correlation alone finds."""
    units = {shown.path.stem: shown.units for shown in bench.pictures()}
    judge = Judge(units, {}, honest.threshold)
    return [found for found in judge.look(traffic) if "correlation" in found.what]


def test_honest_latents_stay_below_the_threshold(bench: Bench, honest: Honest, evidence: Evidence) -> None:
    """The real build on the shipped model: no run of numbers that crosses is that much like a picture."""
    evidence.figure(f"threshold {honest.threshold:.2f}, caught from a = {honest.least_share():.2f} on")
    evidence.cases(SENT)
    traffic = crossed(bench)
    assert len(traffic.tensors) == SENT
    assert correlated(bench, honest, traffic) == []


def test_a_latent_with_a_part_of_its_picture_is_caught(
    bench: Bench, honest: Honest, evidence: Evidence
) -> None:
    """sqrt(1 - a^2) latent + a picture, a = 0.6, which the check for noise lets through: by what is left of it."""
    traffic = crossed(bench, "latent_with_picture")
    evidence.figure(f"by the correlation alone: {len(correlated(bench, honest, traffic))} of {SENT}")
    units = {shown.path.stem: shown.units for shown in bench.pictures()}
    found = Judge(units, bench.latents(), honest.threshold).look(traffic)
    assert sum(each.what == "a latent that no picture has" for each in found) == SENT


def test_the_correlation_alone_sees_what_is_mostly_picture(honest: Honest) -> None:
    """Latents that pass the gate correlate with their pictures: it begins at a = 0.6, the residual does the rest."""
    assert 0.55 <= honest.least_share() <= 0.8

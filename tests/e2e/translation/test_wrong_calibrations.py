"""A wrong calibration translates nothing between two nodes: each is refused where it is found, with its own reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.calibration.record import SignedCalibration
from ddib_fed.errors import CalibrationRefused
from ddib_fed.models.bundle import make_bundle
from ddib_fed.models.units import ChannelMap
from ddib_fed.security import pki
from ddib_fed.v1 import translation_pb2 as pb
from tests import audit_rows
from tests.calibration.examples import sign
from tests.e2e.two_nodes import TwoNodes
from tests.node.agreed_calibrations import agreed, ended
from tests.node.institutions import Institution
from tests.node.picture_examples import noise, pictures_model, png_bytes

pytestmark = pytest.mark.slow


class Pair:
    """North and south, which have agreed on a calibration, and one picture to translate."""

    def __init__(self, folder: Path) -> None:
        bundles = [
            make_bundle(*pictures_model(domain, seed=seed)) for seed, domain in enumerate(("scans", "relief"))
        ]
        self.folder = folder
        self.nodes = TwoNodes(folder, *bundles, calibration='["rotation"]')
        self.north, self.south = self.nodes.source.north, self.nodes.target.south
        self.west = Institution("west.example", folder / "west")
        self.picture = folder / "picture.png"
        self.picture.write_bytes(png_bytes(noise(seed=3)))
        self.signed = agreed(self.north, self.south)

    def hold(self, at_source: SignedCalibration, at_target: SignedCalibration) -> None:
        self.nodes.source.node.calibrations.add(at_source)
        self.nodes.target.node.calibrations.add(at_target)

    def translate(self) -> pb.Job:
        return self.nodes.ended(self.nodes.submit(self.picture))

    def refused(self) -> str:
        """The reason why the job failed; no latent has left."""
        before = self.sent()
        job = self.translate()
        assert job.state == pb.JOB_STATE_FAILED
        assert self.sent() == before
        return job.error.reason

    def sent(self) -> list[str]:
        lines = audit_rows.lines(self.nodes.source.node.config.paths.store)
        return [line for line in lines if "latent_sent" in line]

    def clear(self) -> None:
        """Both stores, and what north's audit log says."""
        for served in (self.nodes.source, self.nodes.target):
            for stored in served.node.calibrations.list():
                served.node.calibrations.remove(stored.sha256)
            for file in served.node.config.paths.calibrations.glob("*"):
                file.unlink()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.nodes.close()


@pytest.fixture
def pair(both):
    both.clear()
    return both


def test_the_calibration_that_both_signed_is_used(pair) -> None:
    """The base of the refusals below: unspoilt, it translates, and the record has its digest."""
    pair.hold(pair.signed, pair.signed)
    results = pair.nodes.results(pair.nodes.submit(pair.picture))
    assert results[0].provenance.calibration_sha256 == pair.signed.sha256.hex()


def altered(signed: SignedCalibration) -> SignedCalibration:
    return signed.model_copy(
        update={"calibration": signed.calibration.model_copy(update={"map": ChannelMap(rotation=((1.0,),))})}
    )


def by_west(pair: Pair) -> SignedCalibration:
    """South's signature is good; the source's is west's."""
    foreign = pair.signed.calibration.source.model_copy(update={"institution": "west.example"})
    west = pair.signed.calibration.model_copy(update={"source": foreign})
    source = sign(west, "source", pki.load_identity(pair.west.pki), now=datetime.now(UTC))
    return pair.signed.model_copy(update={"source": source})


Spoil = Callable[[Pair], tuple[SignedCalibration, SignedCalibration]]
AT_TARGET: dict[str, tuple[Spoil, str]] = {
    "unsigned by the source": (
        lambda pair: (pair.signed, pair.signed.model_copy(update={"source": None})),
        "CALIBRATION_UNSIGNED",
    ),
    "signed by west": (lambda pair: (pair.signed, by_west(pair)), "CALIBRATION_SIGNER"),
    "a signature exchanged": (
        lambda pair: (
            pair.signed,
            pair.signed.model_copy(update={"target": agreed(pair.north, pair.south, expires=FAR).target}),
        ),
        "CALIBRATION_ALTERED",
    ),
}
FAR = datetime.now(UTC) + timedelta(days=300)


@pytest.mark.parametrize("how", AT_TARGET)
def test_the_target_refuses(pair, how) -> None:
    """The job fails with the target's reason, and nothing is decoded."""
    spoil, reason = AT_TARGET[how]
    pair.hold(*spoil(pair))
    assert pair.refused() == reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda pair: altered(pair.signed), "CALIBRATION_ALTERED"),
        (lambda pair: ended(pair.signed), "CALIBRATION_EXPIRED"),
    ],
)
def test_the_source_refuses_before_it_encodes(pair, spoil, reason) -> None:
    """Altered by one bit (its file renamed to fit), expired, or another institution's: the job is not accepted."""
    spoilt = spoil(pair)
    pair.hold(spoilt, spoilt)
    with pytest.raises(CalibrationRefused) as refused:
        pair.translate()
    assert refused.value.reason == reason

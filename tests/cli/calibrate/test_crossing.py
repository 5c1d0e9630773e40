"""`ddib calibrate --peer` through a relay that keeps every decrypted byte: what crosses, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.calibration import aggregate as aggregates
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.security import pki
from tests.cli.calibrate.operators import TO, Operators, printed, run
from tests.e2e.admission.test_promises import windows
from tests.e2e.harness import raw_windows, weight_windows
from tests.runs.picture_folders import blocks, write
from tests.security.tap.relay import Tap

pytestmark = [pytest.mark.slow, pytest.mark.promise("latents")]
ROTATION_TO_THE_NEGATIVE = ((-1.0,),)


def skewed(count: int, *, seed: int, negative: bool = False) -> np.ndarray:
    dark = (blocks(count, seed=seed) + 1) ** 3 / 4 - 1
    return -dark if negative else dark


@pytest.fixture(autouse=True)
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates, "secure_normal", np.random.default_rng(0).standard_normal)


@pytest.fixture
def tapped(open_nodes) -> tuple[Operators, Tap]:
    """Both operators, whose nodes reach each other through the tap."""
    both = open_nodes(calibration='["rotation", "tone"]', calibration_units="true")
    north, south = both.nodes.source.north, both.nodes.target.south
    tap = Tap(both.nodes.target.server.port, south.pki, north.pki)
    north.store.add(
        south.peer(f"localhost:{tap.port}"), fingerprints=[pki.fingerprint(south.root)], replace=True
    )
    yield both, tap
    tap.close()


def test_only_aggregate_calibration_and_signatures_cross(tapped) -> None:
    """Every byte of both directions is accounted for; no pixel, weight, name or folder is among them."""
    both, tap = tapped
    pictures = {"north": skewed(260, seed=1), "south": skewed(260, seed=2, negative=True)}
    folders = {at: write(both.folder / f"Ada-{at}", drawn) for at, drawn in pictures.items()}
    run("publish", "--pictures", folders["south"], "--yes", "--config", both.south)
    said = printed(
        "--peer", TO, "--pictures", folders["north"], "--yes", "--config", both.north, "--format", "json"
    )
    shown = json.loads(said)
    both.agree()
    tap.close()
    sent, received = bytes(tap.to_target), bytes(tap.to_source)

    (stored,) = both.stored("north").list()
    assert stored.complete
    assert stored.calibration.map.rotation == ROTATION_TO_THE_NEGATIVE
    aggregate = (both.folder / "south" / "state" / "aggregate.json").read_bytes()
    crossed = shown["crossed"]
    # To fetch the signature the proposal crosses once more.
    crossed = {name: size * (1 + name.endswith(" sent")) for name, size in crossed.items()}
    crossed["signature received"] = stored.target.to_pb().ByteSize()
    assert aggregate in received
    assert stored.calibration.canonical in sent
    assert crossed["aggregate received"] == len(aggregate)
    framing = {
        "sent": len(sent) - sum(size for name, size in crossed.items() if name.endswith(" sent")),
        "received": len(received) - sum(size for name, size in crossed.items() if name.endswith(" received")),
    }
    assert all(0 < size < 2_500 for size in framing.values()), (crossed, framing)
    for secret in _secrets(both, pictures, folders):
        assert secret not in sent + received


def _secrets(both: Operators, pictures: dict[str, np.ndarray], folders: dict[str, Path]) -> list[bytes]:
    """Runs of every picture as it lies in memory and on the disk, of the weights, and names."""
    found = [b"Ada-", b".png", str(both.folder).encode()]
    for at, drawn in pictures.items():
        for values in (drawn, drawn / np.float32(0.5)):
            found += [window for picture in values for window in windows(picture)]
        for pixels, file in zip(to_pixels(drawn), sorted(folders[at].iterdir()), strict=True):
            found += raw_windows(pixels.tobytes(), count=4) + raw_windows(file.read_bytes(), count=4)
        found += weight_windows(both.folder / at / "model", count=100)
    return found


def test_anchors_cross_nothing_but_the_calibration(tapped) -> None:
    """Nothing is published; the peer's units come, and the proposal waits for its operator."""
    both, tap = tapped
    anchors = skewed(2, seed=5)
    folders = [
        write(both.folder / "scan", anchors, names=[f"phantom-{i}" for i in range(2)]),
        write(both.folder / "drawing", -anchors, names=[f"phantom-{i}" for i in range(2)]),
    ]
    said = printed(
        "--peer",
        TO,
        "--kind",
        "tone",
        "--anchors",
        *folders,
        "--yes",
        "--config",
        both.north,
        "--format",
        "json",
    )
    tap.close()
    both_ways = bytes(tap.to_target) + bytes(tap.to_source)
    assert set(json.loads(said)["crossed"]) == {
        "units received", "calibration sent", "own signature and certificate sent",
    }  # fmt: skip
    assert b"phantom" not in both_ways
    (stored,) = both.stored("south").list()
    assert not stored.complete
    assert stored.calibration.kind == "tone"
    assert stored.calibration.made.anchors == 2

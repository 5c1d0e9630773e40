"""`ddib calibrate --peer`, publish, accept, send, list, show and remove at two nodes that run, and what crosses."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.calibration import aggregate as aggregates
from ddib_fed.calibration.record import Dial, Effect
from ddib_fed.errors import CalibrationIneffective, CalibrationUnknown, StateConflict, UsageError
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.bundle import make_bundle
from ddib_fed.models.units import ChannelMap
from ddib_fed.security import pki
from tests.calibration.examples import figure
from tests.cli.calibrate.operators import TO, Operators, run
from tests.e2e.admission.test_promises import windows
from tests.e2e.harness import raw_windows, weight_windows
from tests.e2e.in_process import InProcessNodes
from tests.node.picture_examples import pictures_model, save_pictures_model
from tests.runs.picture_folders import blocks, write
from tests.security.tap.relay import Tap

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def open_nodes(tmp_path_factory):
    """Opens both nodes; `settings` are lines of both node.toml."""
    opened = []

    def open_them(**settings) -> Operators:
        folder = tmp_path_factory.mktemp("nodes")
        models = [pictures_model("scans", seed=1), pictures_model("drawings", seed=2)]
        nodes = InProcessNodes(folder, *map(make_bundle, *zip(*models, strict=True)), **settings)
        opened.append(nodes)
        for name, domain, seed in (("north", "scans", 1), ("south", "drawings", 2)):
            save_pictures_model(folder / name / "model", domain, seed=seed)
        return Operators(nodes, folder)

    yield open_them
    for nodes in opened:
        nodes.close()


@pytest.fixture(scope="module")
def asking(open_nodes) -> Operators:
    return open_nodes(calibration='["rotation", "tone"]')


@pytest.fixture
def both(asking) -> Operators:
    asking.clear()
    return asking


def test_a_proposal_is_accepted_by_hand_and_fetched(both) -> None:
    """The way of the default policy; both then hold the same signed calibration, and say so."""
    sha256 = both.propose()
    assert both.stored("south").find(bytes.fromhex(sha256)).state(datetime.now(UTC)) == "proposed"
    assert "proposed" in run("list", "--config", both.south)
    (listed,) = json.loads(run("list", "--format", "json", "--config", both.south))["calibrations"]
    assert listed["expires"].endswith("Z")
    accepted = run("accept", sha256[:12], "--yes", "--config", both.south)
    assert f"ddib calibrate send {sha256[:12]}" in accepted
    assert "agreed" in run("send", sha256[:12], "--config", both.north)
    for name, config in (("north", both.north), ("south", both.south)):
        assert both.stored(name).find(bytes.fromhex(sha256)).state(datetime.now(UTC)) == "active"
        shown = json.loads(run("show", sha256[:12], "--config", config, "--format", "json"))
        assert shown["signatures"]["source"].startswith("spiffe://north.example/node/node-1, 20")
        assert shown["signatures"]["target"].startswith("spiffe://south.example/node/node-1, 20")
    assert both.acts("north") == ["calibration_proposed", "calibration_signed"]
    assert both.acts("south") == ["calibration_proposed", "calibration_signed"]
    with pytest.raises(StateConflict, match="is active"):
        run("accept", sha256[:12], "--yes", "--config", both.south)


def test_a_calibration_is_taken_out_of_use_for_good(both) -> None:
    """The peer cannot bring it back by proposing it again."""
    sha256 = both.propose()
    assert "is no longer used" in run("remove", sha256[:12], "--config", both.south)
    with pytest.raises(CalibrationUnknown):
        run("send", sha256[:12], "--config", both.north)
    run("remove", sha256[:12], "--config", both.north)
    assert "is deleted" in run("remove", sha256[:12], "--config", both.north)
    assert "no calibrations yet" in run("list", "--config", both.north)


def test_a_setting_that_is_agreed_on_replaces_the_calibration_without_it(both) -> None:
    """Both lists say which one jobs use, and its setting; without the newer one the older is used again."""
    older = both.propose()
    both.agree()
    newer = both.propose(dial=Dial(temperature=0.9))
    both.agree()
    for config in (both.north, both.south):
        listed = json.loads(run("list", "--format", "json", "--config", config))["calibrations"]
        assert [(each["sha256"], each["state"], each["dial"]) for each in listed] == [
            (newer, "active", "share 1, temperature 0.9, blend 0"),
            (older, "replaced", "share 1, temperature 1, blend 0"),
        ]
        assert "share 1, temperature 0.9, blend 0" in run("list", "--config", config)
        run("remove", newer[:12], "--config", config)
        listed = json.loads(run("list", "--format", "json", "--config", config))["calibrations"]
        assert [each["state"] for each in listed] == ["inactive", "active"]


def test_a_map_that_the_source_is_trained_with_replaces_no_other(both) -> None:
    """Jobs use the older one until the source is trained with the newer, so no list calls it replaced."""
    curves = [ChannelMap(curve=((-1.0, -1.0), (0.0, bend), (1.0, 1.0))) for bend in (0.0, 0.1)]
    first, second = (both.propose(kind="tone", map=each) for each in curves)
    dialled = both.propose(kind="tone", map=curves[1], dial=Dial(temperature=0.9))
    for sha256 in (first, second, dialled):
        run("accept", sha256[:12], "--yes", "--config", both.south)
    listed = json.loads(run("list", "--format", "json", "--config", both.south))["calibrations"]
    assert {each["sha256"]: each["state"] for each in listed} == {
        dialled: "active",
        second: "replaced",
        first: "active",
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"margin": figure(0.0)}, "mirrored"), ({"distance": figure(1.0)}, "not better than none")],
)
def test_doubtful_figures_are_refused_by_both_operators(both, changes, says) -> None:
    """The source does not send them; the target, which sees them, does not sign them without --force."""
    values = {"distance_before": figure(1.0), "distance": figure(0.3), "margin": figure(0.2)}
    file = both.anchored(effect=Effect(**{**values, **changes}))
    with pytest.raises(CalibrationIneffective, match=says):
        run("--peer", TO, "--from", file, "--yes", "--config", both.north)
    assert both.stored("south").list() == ()
    run("--peer", TO, "--from", file, "--yes", "--force", "--days", "7", "--config", both.north)
    ends = both.stored("south").list()[0].calibration.expires
    assert timedelta(days=6) < ends - datetime.now(UTC) < timedelta(days=8)
    sha256 = both.stored("south").list()[0].sha256.hex()
    with pytest.raises(CalibrationIneffective, match=says):
        run("accept", sha256[:12], "--yes", "--config", both.south)
    assert "signed" in run("accept", sha256[:12], "--yes", "--force", "--config", both.south)


def test_nothing_leaves_unless_it_is_confirmed(both) -> None:
    """Without a terminal --yes is needed, at each act; nothing is stored before it."""
    with pytest.raises(UsageError, match="no terminal"):
        run("--peer", TO, "--from", both.anchored(), "--config", both.north)
    pictures = write(both.folder / "pictures", blocks(260))
    with pytest.raises(UsageError, match="no terminal"):
        run("publish", "--pictures", pictures, "--config", both.south)
    assert both.stored("north").list() == both.stored("south").list() == ()
    assert not (both.folder / "south" / "state" / "aggregate.json").exists()
    sha256 = both.propose()
    with pytest.raises(UsageError, match="no terminal"):
        run("accept", sha256[:12], "--config", both.south)


def test_what_is_published_adds_up_and_names_the_peers_that_have_it(both, noise) -> None:
    """By the audit log; a file that is not usable changes neither the number of pictures nor anything else."""
    pictures = write(both.folder / "some", blocks(260))
    published = ("publish", "--pictures", pictures, "--yes", "--config", both.south)
    first = run(*published)
    assert "mean over 260 pictures" in first
    assert "epsilon 1, delta 1e-05 for each picture" in first
    with pytest.raises(CalibrationIneffective):  # the aggregate is fetched, and does not tell light from dark
        run("--peer", TO, "--pictures", pictures, "--yes", "--config", both.north)
    (pictures / "p07.png").write_bytes(b"no picture")
    again = run(*published, "--force", "--epsilon", "2")
    assert "mean over 260 pictures" in again
    assert "p07.png" in again
    listed = json.loads(run("list", "--format", "json", "--config", both.south))["published"]
    assert [(each["counted"], each["epsilon"], each["peers"]) for each in listed[-2:]] == [
        (260, 1.0, ["north.example"]),
        (260, 2.0, []),
    ]
    # Tests before this one published too.
    assert sum(each["epsilon"] for each in listed) == len(listed) + 1
    together = f"epsilon {len(listed) + 1}, delta {len(listed) * 1e-5:g} for each picture that is in all {len(listed)}"
    for said in (again, run("list", "--config", both.south)):
        assert together in said


ROTATION_TO_THE_NEGATIVE = ((-1.0,),)


def skewed(count: int, *, seed: int, negative: bool = False) -> np.ndarray:
    dark = (blocks(count, seed=seed) + 1) ** 3 / 4 - 1
    return -dark if negative else dark


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates, "secure_normal", np.random.default_rng(0).standard_normal)


@pytest.fixture
def tapped(open_nodes, noise) -> tuple[Operators, Tap]:
    """Both operators, whose nodes reach each other through the tap."""
    both = open_nodes(calibration='["rotation", "tone"]')
    north, south = both.nodes.source.north, both.nodes.target.south
    tap = Tap(both.nodes.target.server.port, south.pki, north.pki)
    north.store.add(
        south.peer(f"localhost:{tap.port}"), fingerprints=[pki.fingerprint(south.root)], replace=True
    )
    yield both, tap
    tap.close()


@pytest.mark.promise("latents")
def test_only_aggregate_calibration_and_signatures_cross(tapped) -> None:
    """Every byte of both directions is accounted for; no pixel, weight, name or folder is among them."""
    both, tap = tapped
    pictures = {"north": skewed(260, seed=1), "south": skewed(260, seed=2, negative=True)}
    folders = {at: write(both.folder / f"Ada-{at}", drawn) for at, drawn in pictures.items()}
    run("publish", "--pictures", folders["south"], "--yes", "--config", both.south)
    said = run(
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
    for way, data in {" sent": sent, " received": received}.items():
        framing = len(data) - sum(size for name, size in crossed.items() if name.endswith(way))
        assert 0 < framing < 2_500, (crossed, way)
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


@pytest.mark.promise("latents")
def test_anchors_cross_nothing_but_the_calibration(tapped) -> None:
    """Nothing is published; the peer's units come, and the proposal waits for its operator."""
    both, tap = tapped
    anchors = skewed(2, seed=5)
    folders = [
        write(both.folder / "scan", anchors, names=[f"phantom-{i}" for i in range(2)]),
        write(both.folder / "drawing", -anchors, names=[f"phantom-{i}" for i in range(2)]),
    ]
    words = ("--peer", TO, "--kind", "tone", "--anchors", *folders, "--yes", "--config", both.north)
    said = run(*words, "--format", "json")
    tap.close()
    both_ways = bytes(tap.to_target) + bytes(tap.to_source)
    assert json.loads(said)["crossed"].keys() == {
        "units received", "calibration sent", "own signature and certificate sent",
    }  # fmt: skip
    assert b"phantom" not in both_ways
    (stored,) = both.stored("south").list()
    assert not stored.complete
    assert stored.calibration.kind == "tone"
    assert stored.calibration.made.anchors == 2

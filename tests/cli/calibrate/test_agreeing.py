"""`ddib calibrate --peer`, publish, accept, send, list, show and remove, typed at two nodes that run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddib_fed.bridge.calibration.files import write_calibration
from ddib_fed.bridge.calibration.record import CalibratedSide, Effect, Making, units_digest
from ddib_fed.cli.main import cli
from ddib_fed.errors import (
    AlreadyExists,
    CalibrationIneffective,
    CalibrationKindDenied,
    CalibrationUnknown,
    PolicyDenied,
    StateConflict,
    UsageError,
)
from ddib_fed.models.bundle import make_bundle
from ddib_fed.models.channel_map import ChannelMap
from ddib_fed.trust.calibration_store import CalibrationStore
from tests.e2e.two_nodes import TwoNodes
from tests.node.picture_examples import pictures_model, save_pictures_model
from tests.runs.picture_folders import blocks, write
from tests.trust.calibration_examples import calibration, figure

pytestmark = pytest.mark.slow
TO = "south.example/drawings"


def run(*arguments: object, answer: str | None = None) -> str:
    """A command that must succeed, what it says on stdout and stderr; its error is raised otherwise."""
    result = CliRunner().invoke(cli, ["calibrate", *map(str, arguments)], input=answer)
    if result.exception is not None:
        raise result.exception
    return result.output


@dataclass
class Operators:
    """Both operators at their nodes."""

    nodes: TwoNodes
    folder: Path

    @property
    def north(self) -> Path:
        return self.folder / "north" / "node.toml"

    @property
    def south(self) -> Path:
        return self.folder / "south" / "node.toml"

    def stored(self, at: str) -> CalibrationStore:
        return CalibrationStore(self.folder / at / "state" / "calibrations")

    def acts(self, at: str) -> list[str]:
        lines = (self.folder / at / "state" / "audit.jsonl").read_text().splitlines()
        return [json.loads(line)["act"] for line in lines]

    def anchored(self, **changes) -> Path:
        """A file with a calibration from anchors: light and dark are exchanged."""
        units = units_digest(pictures_model("scans", seed=1)[0].normalisation)
        sides = {"source": "scans", "target": "drawings"}
        made = calibration(
            map=ChannelMap(rotation=((-1,),)),
            made=Making(method="anchors", anchors=8, created=datetime.now(UTC)),
            **{name: CalibratedSide(domain=domain, units_sha256=units) for name, domain in sides.items()},
            **changes,
        )
        path = self.folder / f"{made.sha256.hex()[:8]}.json"
        write_calibration(made, path)
        return path

    def propose(self, **changes) -> str:
        """North proposes it; its digest."""
        file = self.anchored(**changes)
        run("--peer", TO, "--from", file, "--yes", "--config", self.north)
        return self.stored("north").list()[0].sha256.hex()


@pytest.fixture
def open_operators(tmp_path):
    opened = []

    def open_it(**settings) -> Operators:
        models = [pictures_model("scans", seed=1), pictures_model("drawings", seed=2)]
        bundles = [make_bundle(*model) for model in models]
        nodes = TwoNodes(tmp_path, *bundles, **{"calibration": '["rotation"]', **settings})
        opened.append(nodes)
        for name, domain, seed in (("north", "scans", 1), ("south", "drawings", 2)):
            save_pictures_model(tmp_path / name / "model", domain, seed=seed)
        return Operators(nodes, tmp_path)

    yield open_it
    for nodes in opened:
        nodes.close()


def test_a_proposal_is_accepted_by_hand_and_fetched(open_operators) -> None:
    """The way of the default policy; both then hold the same signed calibration, and say so."""
    both = open_operators()
    sha256 = both.propose()
    assert both.stored("south").find(bytes.fromhex(sha256)).state(datetime.now(UTC)) == "proposed"
    assert "proposed" in run("list", "--config", both.south)
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


def test_a_calibration_is_taken_out_of_use_for_good(open_operators) -> None:
    """The peer cannot bring it back by proposing it again."""
    both = open_operators()
    sha256 = both.propose()
    assert "not used any more" in run("remove", sha256[:12], "--config", both.south)
    with pytest.raises(CalibrationUnknown):
        run("send", sha256[:12], "--config", both.north)
    run("remove", sha256[:12], "--forget", "--config", both.north)
    assert "no calibrations yet" in run("list", "--config", both.north)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"margin": figure(0.0)}, "mirrored"), ({"distance": figure(1.0)}, "not better than none")],
)
def test_doubtful_figures_are_refused_by_both_operators(open_operators, changes, says) -> None:
    """The source does not send them; the target, which sees them, does not sign them without --force."""
    both = open_operators()
    values = {"distance_before": figure(1.0), "distance": figure(0.3), "margin": figure(0.2)}
    file = both.anchored(effect=Effect(**{**values, **changes}))
    with pytest.raises(CalibrationIneffective, match=says):
        run("--peer", TO, "--from", file, "--yes", "--config", both.north)
    assert both.stored("south").list() == ()
    run("--peer", TO, "--from", file, "--yes", "--force", "--config", both.north)
    sha256 = both.stored("south").list()[0].sha256.hex()
    with pytest.raises(CalibrationIneffective, match=says):
        run("accept", sha256[:12], "--yes", "--config", both.south)
    assert "signed" in run("accept", sha256[:12], "--yes", "--force", "--config", both.south)


def test_nothing_leaves_unless_it_is_confirmed(open_operators) -> None:
    """Without a terminal --yes is needed, at each act; nothing is stored before it."""
    both = open_operators()
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


def test_an_aggregate_is_published_once(open_operators) -> None:
    """It says what would leave; a second draw must be asked for; peers get what is published, byte for byte."""
    both = open_operators()
    pictures = write(both.folder / "pictures", blocks(260))
    said = run("publish", "--pictures", pictures, "--yes", "--config", both.south)
    assert "no picture, no pixel and no position" in said
    assert "epsilon 1, delta 1e-05" in said
    first = (both.folder / "south" / "state" / "aggregate.json").read_bytes()
    with pytest.raises(AlreadyExists, match="costs epsilon again"):
        run("publish", "--pictures", pictures, "--yes", "--config", both.south)
    run("publish", "--pictures", pictures, "--again", "--yes", "--config", both.south)
    assert (both.folder / "south" / "state" / "aggregate.json").read_bytes() != first
    assert both.acts("south") == ["aggregate_published"] * 2


def test_a_kind_that_is_not_allowed_is_refused_before_anything_crosses(open_operators) -> None:
    """By north's own policy; the hint names the line."""
    both = open_operators(calibration="[]")
    with pytest.raises(CalibrationKindDenied) as refused:
        run("--peer", TO, "--yes", "--config", both.north)
    assert '[policy] calibration = ["rotation"]' in refused.value.hint


def test_commands_of_one_role_are_refused_at_the_other(open_operators) -> None:
    """North has no aggregate to publish, south proposes nothing."""
    both = open_operators()
    with pytest.raises(PolicyDenied, match="is for a target"):
        run("publish", "--yes", "--config", both.north)
    with pytest.raises(PolicyDenied, match="is for a source"):
        run("--peer", TO, "--yes", "--config", both.south)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--peer", "south.example"),
        ("--peer", TO, "--local", "a", "b"),
        ("--peer", TO, "--epsilon", "0.5"),
        ("--peer", TO, "--pictures", "a", "--pictures", "b"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments) -> None:
    """Before a file is read."""
    with pytest.raises(UsageError):
        run(*arguments)


def test_a_calibration_lasts_as_long_as_it_was_asked_to(open_operators) -> None:
    """From now on, whatever the file said."""
    both = open_operators()
    file = both.anchored(expires=datetime.now(UTC) + timedelta(days=1))
    run("--peer", TO, "--from", file, "--yes", "--days", "7", "--config", both.north)
    ends = both.stored("south").list()[0].signed.calibration.expires
    assert timedelta(days=6) < ends - datetime.now(UTC) < timedelta(days=8)

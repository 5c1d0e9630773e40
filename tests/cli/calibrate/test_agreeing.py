"""`ddib calibrate --peer`, publish, accept, send, list, show and remove, typed at two nodes that run."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from ddib_fed.calibration.record import Effect
from ddib_fed.errors import (
    CalibrationIneffective,
    CalibrationUnknown,
    StateConflict,
    UsageError,
)
from tests.calibration.examples import figure
from tests.cli.calibrate.operators import TO, run
from tests.runs.picture_folders import blocks, write

pytestmark = pytest.mark.slow


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


def test_what_is_published_adds_up_and_names_the_peers_that_have_it(both) -> None:
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


def test_epsilon_of_groups_is_for_a_group(both) -> None:
    """In what is shown, and in what peers get."""
    names = [f"patient-{i // 2:03}-{i % 2}" for i in range(420)]
    pictures = write(both.folder / "patients", blocks(420), names=names)
    said = run(
        "publish", "--pictures", pictures, "--group-by", "patient-[0-9]+", "--yes", "--config", both.south
    )
    assert "mean over 210 groups" in said
    assert "epsilon 1, delta 1e-05 for each group" in said
    sent = json.loads((both.folder / "south" / "state" / "aggregate.json").read_bytes())
    assert (sent["counted"], sent["unit"]) == (210, "group")


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

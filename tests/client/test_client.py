"""The typed client against a real server over mutual TLS, well-behaved and not."""

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.client.connection import Patience
from ddib_fed.client.files import payload
from ddib_fed.client.profile import Profile
from ddib_fed.errors import (
    DdibError,
    InputError,
    PictureMisfit,
    QueueFull,
    QuotaSpent,
)
from ddib_fed.record import Settings
from ddib_fed.security.pki import issue_to_folder, load_authority
from tests.client.scripted_source import TARGET, npy, points


def test_submits_every_item_whole(alice, north, tmp_path):
    """Files and bytes arrive as they are, with settings and flags in the header, and no file name."""
    (tmp_path / "patient-7.npy").write_bytes(npy(points(60_000)))
    job = alice.submit(
        [tmp_path / "patient-7.npy", npy(points(3))],
        TARGET,
        Request(Settings("ddim", 0, 24, "integer"), cycle=True),
    )
    stored = north.service.jobs[job.job_id]
    assert stored.inputs == [npy(points(60_000)), npy(points(3))]
    assert (stored.header.solver.solver, stored.header.solver.evaluations) == ("ddim", 24)
    assert stored.header.cycle
    assert b"patient" not in stored.header.SerializeToString()


@pytest.mark.parametrize("number", ["0", "x"])
def test_an_item_that_is_refused_is_called_by_its_file(alice, north, tmp_path, number):
    """The node knows a number; the message has the file, what it holds, what is taken, and what would fit."""
    path = tmp_path / "deep.npy"
    np.save(path, points())
    facts = {"item": number, "model": "north.example/scans", "problem": "scale", "range": "0:255"}
    facts |= {"holds": "grey uint16 from 0 to 65535", "takes": "0 to 255", "fits": "0:65535"}
    north.script.refuse["SubmitJob"] = PictureMisfit(facts=facts)
    with pytest.raises(PictureMisfit) as caught:
        alice.submit([path], TARGET)
    if number != "0":
        assert caught.value.detail == PictureMisfit.sentence
        return
    said = f"{path} holds grey uint16 from 0 to 65535; north.example/scans takes 0 to 255"
    assert caught.value.detail.startswith(said)
    assert "--range 0:65535" in caught.value.hint
    assert caught.value.facts["item"] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["away", "lose_answer"])
def test_submitting_again_is_the_same_job(alice, north, fault):
    """When the node is away, or its answer is lost, the same request id is sent again: one job, not two."""
    getattr(north.script, fault)["SubmitJob"] = 2
    job = alice.submit([npy(points())], TARGET)
    assert len({header.request_id for header in north.script.seen("SubmitJob")}) == 1
    assert len(north.script.seen("SubmitJob")) == 3
    assert list(north.service.jobs) == [job.job_id]
    assert job.repeated is (fault == "lose_answer")


def test_a_refusal_is_raised_at_once_with_its_hop(alice, north):
    """What the node refuses is not tried again, and carries hop, facts, incident and when to come back."""
    north.script.refuse["SubmitJob"] = QuotaSpent(facts={"limit": 64}, retry_after_s=5_000)
    with pytest.raises(QuotaSpent) as caught:
        alice.submit([npy(points())], TARGET)
    error = caught.value
    assert (error.hop, error.facts, error.incident) == ("source north.example", {"limit": "64"}, "incident1")
    assert error.retry_after_s == 5_000
    assert len(north.script.seen("SubmitJob")) == 1


@pytest.mark.parametrize("method", ["SubmitJob", "FetchResults"])
def test_a_limit_at_any_call_is_waited_for(north, method):
    """The node is tried again when it says, over the same connection, and nothing is submitted twice."""
    told = []

    def on_wait(error, delay_s):
        told.append((type(error), error.hop))
        if len(told) == 2:
            north.script.refuse.clear()

    north.script.refuse[method] = QueueFull("full", retry_after_s=0.01)
    with Client(Profile.load(north.profile_path), on_wait=on_wait) as client:
        assert [each.item for each in client.translate([npy(points())], TARGET)] == [0]
    assert told == [(QueueFull, "source north.example")] * 2
    assert len(north.service.jobs) == 1
    assert len(north.script.seen(method)) >= 3


def test_a_file_that_changes_while_being_sent_is_named(alice, tmp_path):
    """The digest that was announced no longer fits: an error about the file, not about the connection."""
    path = tmp_path / "points.npy"
    path.write_bytes(npy(points()))
    item = payload(path)
    path.write_bytes(npy(points(start=1)))
    with pytest.raises(InputError, match="changed while"):
        alice.submit([item], TARGET)


def test_watches_from_the_last_event_after_the_stream_broke(alice, north):
    job = alice.submit([npy(points()), npy(points())], TARGET)
    north.script.break_watch_after = [2, 3]
    events = list(alice.watch(job.job_id))
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert events[-1].state == "FINISHED"
    assert [request.after_sequence for request in north.script.seen("WatchJob")] == [0, 2, 5]


def test_fetching_goes_on_with_the_rest_after_a_break(alice, north):
    """What was whole before the break is not asked for again."""
    job = alice.submit([npy(points(start=n)) for n in range(3)], TARGET)
    north.script.break_fetch_after = [1]
    results = list(alice.fetch(job.job_id))
    assert [result.item for result in results] == [0, 1, 2]
    assert [list(request.items) for request in north.script.seen("FetchResults")] == [[0, 1, 2], [1, 2]]


@pytest.mark.slow
def test_the_client_loads_neither_torch_nor_the_science():
    """Imported in a fresh process, also as `ddib_fed.Client`; and `import ddib_fed` loads its version alone."""
    code = (
        "import sys, ddib_fed; loaded = {m for m in sys.modules if m.startswith(('grpc', 'ddib_fed.'))};"
        "assert loaded == {'ddib_fed.names'}, loaded;"
        "ddib_fed.Client.from_profile; import ddib_fed.client.profile;"
        "heavy = {'torch', 'numpy', 'matplotlib', 'scipy', 'PIL', 'tifffile'};"
        "heavy |= {'ddib_fed.diffusion', 'ddib_fed.models'};"
        "heavy &= set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.cwd())


def test_a_renewal_that_fails_does_not_fail_the_work(north, caplog):
    """The certificate is due and the node does not renew: the call succeeds, the log says what is wrong."""
    profile = Profile.load(north.profile_path)
    authority = load_authority(north.profile_path.parents[1] / "north" / "state" / "pki")
    issue_to_folder(
        authority, profile.pki_folder, "client", "alice", now=datetime.now(UTC) - timedelta(days=25)
    )
    with Client(profile) as client:
        assert client.domains().institution == "north.example"
    assert "could not be renewed" in caplog.text


class Clock(threading.Event):
    """Waits by moving the clock on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 100.0
        monkeypatch.setattr("ddib_fed.client.connection.time.monotonic", lambda: self.now)

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def patience(clock: Clock, told: list[float], *, limit_s: float = 60.0, busy_s: float = 600.0) -> Patience:
    return Patience(limit_s, busy_s, lambda _, delay: told.append(delay), clock)


def until_given_up(patience: Patience, error: DdibError) -> DdibError:
    try:
        while True:
            patience.wait(error)
    except DdibError as given_up:
        return given_up


def test_a_limit_that_stays_is_given_up_and_the_error_says_for_how_long_was_tried(clock):
    """Ten minutes here; the text names the time, and a command."""
    told: list[float] = []
    error = until_given_up(patience(clock, told), QueueFull("64 jobs are open", retry_after_s=30))
    assert 570 <= sum(told) <= 600.0001
    assert error.detail.startswith("64 jobs are open, and was still after ")
    assert "ddib job list" in error.hint

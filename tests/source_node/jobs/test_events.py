"""Events of jobs: order, coalescing, bounds, and how a watch ends."""

import gc
import threading

import pytest

from ddib_fed.protocol.messages import Event, JobState
from source_node.events import MAX_EVENTS, MAX_JOBS, MAX_WHOLE, EventHub


@pytest.fixture
def hub():
    hub = EventHub(boot=1)
    yield hub
    hub.close()


def kept(hub, job="job", after=0) -> list:
    return list(hub.subscribe(job, after, timeout_s=0))


def end(hub, job="job") -> None:
    hub.publish(job, state=JobState.FINISHED)


def test_events_are_read_in_the_order_published(hub):
    """With sequence numbers that rise."""
    for stage in ("encode", "decode", "done"):
        hub.publish("job", state="RUNNING", stage=stage)
    events = kept(hub)
    assert [event.stage for event in events] == ["encode", "decode", "done"]
    assert sorted({event.sequence for event in events}) == [event.sequence for event in events]


def test_only_events_after_a_sequence_are_read(hub):
    """A watcher that comes again misses nothing and repeats nothing."""
    first = hub.publish("job", state="QUEUED")
    second = hub.publish("job", state="RUNNING")
    assert kept(hub, after=first.sequence) == [second]


def test_sequences_rise_over_a_restart():
    """The next boot's first is above any of this one's."""
    before = EventHub(boot=4).publish("job", state="RUNNING")
    after = EventHub(boot=5).publish("job", state="RUNNING")
    assert after.sequence > before.sequence + 2**31


def test_steps_do_not_push_out_changes_of_state(hub):
    """However many there are."""
    hub.publish("job", state="RUNNING")
    for step in range(10 * MAX_EVENTS):
        hub.publish("job", state="RUNNING", stage="encode", step=step, steps=10)
    assert [e.stage for e in kept(hub)] == ["", "encode"]


def test_a_job_keeps_a_bounded_number(hub):
    """The oldest go, the newest stay."""
    for item in range(2 * MAX_EVENTS):
        hub.publish("job", state="RUNNING", item=item, stage="done")
    events = kept(hub)
    assert (len(events), events[-1].item) == (MAX_EVENTS, 2 * MAX_EVENTS - 1)


def test_the_hub_keeps_a_bounded_number_of_jobs(hub):
    """The longest silent go."""
    for n in range(MAX_JOBS + 1):
        hub.publish(f"job-{n}", state="RUNNING")
    assert hub.last("job-0") is None
    assert hub.last("job-1") is not None


def test_deleted_jobs_leave_nothing(hub):
    """However many have come and gone."""
    for number in range(4 * MAX_WHOLE):
        hub.publish(f"job {number}", state="RUNNING")
        end(hub, f"job {number}")
        hub.forget(f"job {number}")
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Event and each.state.ended]


def test_a_watch_ends_with_the_job(hub):
    """After its last event, without a time limit."""
    end(hub)
    assert [event.state for event in hub.subscribe("job")] == [JobState.FINISHED]


@pytest.mark.slow
def test_a_watch_of_a_deleted_job_ends(hub):
    """Its last event may go before it is read."""
    seen, began = [], threading.Event()

    def watch():
        for event in hub.subscribe("job"):
            seen.append(event.state)
            began.set()

    hub.publish("job", state="RUNNING")
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    assert began.wait(10)
    hub.forget("job")
    thread.join(10)
    assert not thread.is_alive()
    assert kept(hub) == []


def watched(hub, events, **options) -> threading.Thread:
    thread = threading.Thread(target=lambda: events.extend(hub.subscribe("job", **options)))
    thread.start()
    return thread


def test_a_waiting_watcher_is_woken_by_an_event(hub):
    """Every watcher of the job is."""
    lists: list[list] = [[], [], []]
    threads = [watched(hub, events) for events in lists]
    hub.publish("job", state="RUNNING")
    end(hub)
    for thread in threads:
        thread.join(10)
    assert [[e.state for e in events][-1] for events in lists] == [JobState.FINISHED] * 3

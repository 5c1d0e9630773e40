"""Events of jobs: order, coalescing, bounds, and how a watch ends."""

import threading
from contextlib import suppress

import pytest

from ddib_fed.errors import DeadlineExceeded
from ddib_fed.protocol.messages import JobState
from ddib_fed.v1.translation_pb2 import JOB_STATE_FINISHED
from source_node.events import MAX_EVENTS, EventHub


@pytest.fixture
def hub():
    hub = EventHub(boot=1)
    yield hub
    hub.close()


def kept(hub, job="job", after=0) -> list:
    events: list = []
    with suppress(DeadlineExceeded):
        events.extend(hub.subscribe(job, after, idle_s=0))
    return events


def end(hub, job="job") -> None:
    hub.publish(job, JobState.FINISHED)


def test_events_are_read_in_the_order_published(hub):
    """With sequence numbers that rise."""
    for stage in ("encode", "decode", "done"):
        hub.publish("job", JobState.RUNNING, stage=stage)
    events = kept(hub)
    assert [event.stage for event in events] == ["encode", "decode", "done"]
    assert sorted({event.sequence for event in events}) == [event.sequence for event in events]


def test_sequences_rise_over_a_restart():
    """The next boot's first is above any of this one's."""
    before = EventHub(boot=4).publish("job", JobState.RUNNING)
    after = EventHub(boot=5).publish("job", JobState.RUNNING)
    assert after.sequence > before.sequence + 2**31


def test_steps_do_not_push_out_changes_of_state(hub):
    """However many there are."""
    hub.publish("job", JobState.RUNNING)
    for step in range(10 * MAX_EVENTS):
        hub.publish("job", JobState.RUNNING, stage="encode", step=step, steps=10)
    assert [e.stage for e in kept(hub)] == ["", "encode"]


def test_a_job_keeps_a_bounded_number(hub):
    """The oldest go, the newest stay."""
    for item in range(2 * MAX_EVENTS):
        hub.publish("job", JobState.RUNNING, item=item, stage="done")
    events = kept(hub)
    assert (len(events), events[-1].item) == (MAX_EVENTS, 2 * MAX_EVENTS - 1)


def test_a_watch_ends_with_the_job(hub):
    """After its last event, without a time limit."""
    end(hub)
    assert [event.state for event in hub.subscribe("job")] == [JOB_STATE_FINISHED]


def watched(hub, events, **options) -> threading.Thread:
    thread = threading.Thread(target=lambda: events.extend(hub.subscribe("job", **options)))
    thread.start()
    return thread


def test_a_waiting_watcher_is_woken_by_an_event(hub):
    """Every watcher of the job is."""
    lists: list[list] = [[], [], []]
    threads = [watched(hub, events) for events in lists]
    hub.publish("job", JobState.RUNNING)
    end(hub)
    for thread in threads:
        thread.join(10)
    assert [[e.state for e in events][-1] for events in lists] == [JOB_STATE_FINISHED] * 3

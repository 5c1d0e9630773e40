"""Events of jobs: order, coalescing, bounds, and how a watch ends."""

import gc
import threading

import pytest

from ddib_fed.errors import DeadlineExceeded
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


def test_a_step_replaces_the_step_before_it(hub):
    """Of the same item and stage; a slow watcher sees the newest."""
    for step in range(1, 1_000):
        hub.publish("job", state="RUNNING", item=0, stage="encode", step=step, steps=1_000)
        hub.publish("job", state="RUNNING", item=1, stage="encode", step=step, steps=1_000)
    assert [(e.item, e.step) for e in kept(hub)] == [(0, 999), (1, 999)]


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


def test_jobs_that_ended_long_ago_keep_their_last_event(hub):
    """Jobs that are not deleted for a week do not fill memory; those that run, or ended just now, keep all."""
    jobs = [f"job {number}" for number in range(3 * MAX_WHOLE)]
    for job in ["running", *jobs]:
        for item in range(20):
            hub.publish(job, state="RUNNING", item=item, stage="done")
    for job in jobs:
        end(hub, job)
    assert [event.state for event in kept(hub, jobs[0])] == [JobState.FINISHED]
    assert [len(kept(hub, job)) for job in ("running", jobs[-1])] == [20, 21]
    del job
    gc.collect()
    alive = sum(type(each) is Event for each in gc.get_objects())
    assert alive <= 20 + 21 * MAX_WHOLE + len(jobs)


def test_deleted_jobs_leave_nothing(hub):
    """However many have come and gone."""
    for number in range(4 * MAX_WHOLE):
        hub.publish(f"job {number}", state="RUNNING")
        end(hub, f"job {number}")
        hub.forget(f"job {number}")
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Event and each.state.ended]


def test_counts_that_are_not_given_are_those_last_said(hub):
    """A step need not count the items again."""
    hub.publish("job", state="RUNNING", items_done=2, items=5)
    event = hub.publish("job", state="RUNNING", stage="encode", step=1, steps=9)
    assert (event.items_done, event.items) == (2, 5)


def test_a_watch_ends_with_the_job(hub):
    """After its last event, without a time limit."""
    end(hub)
    assert [event.state for event in hub.subscribe("job")] == [JobState.FINISHED]


def test_a_watch_that_has_seen_the_end_ends_at_once(hub):
    """It does not wait for what will never come."""
    end(hub)
    assert list(hub.subscribe("job", hub.last("job").sequence)) == []


@pytest.mark.slow
def test_a_watch_without_an_event_lasts_only_so_long(hub):
    """Each event gives it as long again; then its caller is asked to watch again."""
    hub.publish("job", state="RUNNING")
    watching = hub.subscribe("job", idle_s=2.0)
    next(watching)
    later = threading.Timer(0.2, hub.publish, ("job",), {"state": "RUNNING", "stage": "done"})
    later.start()
    assert next(watching).stage == "done"
    with pytest.raises(DeadlineExceeded) as idle:
        next(watching)
    assert idle.value.facts == {"idle_s": "2"}


def test_what_is_said_of_a_job_that_has_ended_comes_too_late(hub):
    """A worker that puts it back, or tells a step, while its owner cancels it: who watches would wait for ever."""
    hub.publish("job", state="RUNNING")
    last = hub.publish("job", state=JobState.CANCELLED)
    assert hub.publish("job", state="QUEUED", stage="wait") == last
    hub.publish("job", state="RUNNING", stage="decode", step=1, steps=9)
    assert [event.state for event in hub.subscribe("job")] == ["RUNNING", JobState.CANCELLED]


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


def test_a_watch_ends_when_it_is_not_wanted(hub):
    """Asked before it waits."""
    assert list(hub.subscribe("job", stop=lambda: True)) == []


def test_a_job_without_events_has_no_last(hub):
    """The service then publishes what the store says."""
    assert hub.last("job") is None


def test_a_forgotten_job_has_no_events(hub):
    """It was deleted."""
    end(hub)
    hub.forget("job")
    assert hub.last("job") is None


def test_jobs_are_watched_apart(hub):
    """Nobody reads of another's job."""
    hub.publish("other", state="RUNNING")
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


@pytest.mark.parametrize("ending", ["stop", "close"])
def test_a_waiting_watcher_can_be_ended(hub, ending):
    """By its own call going away, or by the node stopping."""
    unwanted = threading.Event()
    thread = watched(hub, [], stop=unwanted.is_set)
    if ending == "stop":
        unwanted.set()
        hub.wake()
    else:
        hub.close()
    thread.join(10)
    assert not thread.is_alive()

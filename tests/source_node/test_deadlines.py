"""A job whose time is up says what it was spent on: who did not answer, and why."""

from __future__ import annotations

import pytest

from ddib_fed.client.client import require_finished
from ddib_fed.errors import JobFailed
from source_node.service import job_message
from tests.node.tiny_nodes import make_institution
from tests.source_node.conftest import wait_until
from tests.source_node.scripted_target import ScriptedTarget


def seen_by_the_client(job) -> str:
    with pytest.raises(JobFailed) as caught:
        require_finished(job_message(job), "source north.example")
    return caught.value.detail


def test_a_peer_where_nothing_listens_is_the_last_cause(source, target) -> None:
    """With its name, and with what the connection's own diagnosis found."""
    target.close()
    job = source.start().ended(source.submit(deadline_s=2))
    assert job.error.reason == "DEADLINE_EXCEEDED"
    said = seen_by_the_client(job)
    assert (
        "the deadline of 2 s passed, 0 of 1 items were done; last: south.example: nothing listens at" in said
    )
    assert "Connection refused" in said


def test_a_job_that_waits_says_for_what(tmp_path, institutions, source) -> None:
    """A peer whose root is another than the one pinned here: by name, while the job waits, and to the operator."""
    north, south = institutions
    impostor = ScriptedTarget(make_institution(tmp_path / "impostor", south.name))
    try:
        north.store.remove(south.name)
        north.admit(south, impostor.address)
        job_id = source.start().submit()
        wait_until(lambda: source.store.get(job_id).error is not None)
        error = source.store.get(job_id).error
        assert (error.facts["peer"], error.facts["cause"]) == ("south.example", "wrong-root")
        _when, problem = source.node.peer_problems.of("south.example")
        assert "[wrong-root]" in problem
    finally:
        impostor.close()

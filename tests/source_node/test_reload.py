"""A reload reaches jobs that run: under a policy that was replaced no further latent leaves."""

from __future__ import annotations

import pytest

from ddib_fed.node.policy_file import PolicyFile
from ddib_fed.wire.jobs import ItemState
from tests.node.test_policy_file import lines, rewrite
from tests.node.tiny_nodes import npy
from tests.source_node.conftest import Source, wait_until

THREE = [npy(seed=n) for n in range(3)]


def reload_after_the_first(source: Source, target, text: str) -> None:
    """Have the policy replaced once the first latent has come to the peer, and before the second one can leave."""
    keep, told = source.store.keep, []

    def keeping(change):
        if (change.item, change.state) == (1, ItemState.ENCODED) and not told:
            wait_until(lambda: target.latents)
            rewrite(source.node, text)
            told.extend(PolicyFile(source.node).reload())
        return keep(change)

    source.store.keep = keeping  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ('clients = { "alice" = [] }', "clients"),
        ('peers = { "south.example" = ["decode"] }', "peers"),
        ("least_evaluations = 9", "least_evaluations"),
        ("least_soften_sigma = 0.5", "least_soften_sigma"),
    ],
)
def test_what_a_reload_forbids_a_running_job_does_not_send(source, target, text, setting) -> None:
    """One latent had left; the log has its line before that of the change, and its receipt names the policy of then."""
    reload_after_the_first(source, target, text)
    before = source.node.policy_sha256
    job = source.start().ended(source.submit(*THREE))
    assert (str(job.state), job.error["reason"]) == ("FAILED", "POLICY_DENIED")
    assert job.error["facts"]["policy"] == setting
    assert {item for item, _ in target.latents} == {0}
    (sent,), (changed,) = lines(source.node, "latent_sent"), lines(source.node, "policy_changed")
    assert (sent["item"], sent["n"] < changed["n"]) == (0, True)
    assert [line["policy"] for line in lines(source.node, "receipt")] == [before]


@pytest.mark.slow
def test_a_job_that_stays_allowed_goes_on_under_the_new_policy(source, target) -> None:
    """After a short pause; what is sent from then on is recorded under the new digest."""
    reload_after_the_first(source, target, "samples_per_day = 5")
    before = source.node.policy_sha256
    job = source.start().ended(source.submit(*THREE))
    after = source.node.policy_sha256
    assert (str(job.state), source.states(job), before != after) == ("FINISHED", ["DECODED"] * 3, True)
    assert {item.provenance["policy_sha256"] for item in job.items[1:]} == {after}
    assert [line["policy"] for line in lines(source.node, "receipt")] == [before, after]

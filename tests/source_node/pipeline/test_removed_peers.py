"""A peer that is removed, or whose root is, gets no further latent."""

from __future__ import annotations

import pytest

from ddib_fed.protocol.messages import ItemState
from ddib_fed.security import pki
from tests import audit_rows
from tests.node.institutions import Institution
from tests.node.tiny_nodes import npy
from tests.source_node.conftest import Source, wait_until

THREE = [npy(seed=n) for n in range(3)]


def test_a_peer_that_is_removed_while_its_item_is_encoded_does_not_get_it(source: Source, target) -> None:
    """The call is open by then; the latent stays here, and no act of sending is recorded."""
    store, keep = source.store, source.store.keep

    def keeping(*arguments, state=None, **more):
        if state == ItemState.ENCODED:
            source.node.peers.remove("south.example")
        return keep(*arguments, state=state, **more)

    store.keep = keeping  # type: ignore[method-assign]
    job = source.start().ended(source.submit())
    assert (str(job.state), job.error.reason) == ("FAILED", "PEER_NOT_FOUND")
    assert target.latents == []
    assert not audit_rows.records(source.config.paths.store, "latent_sent")


@pytest.mark.slow
def test_a_root_that_is_replaced_while_items_are_encoded_ends_what_it_verified(
    source: Source, target, tmp_path
) -> None:
    """The open call leads to whoever has the old root's key: nothing leaves on it, and nobody else answers there."""
    keep, new = source.store.keep, Institution("south.example", tmp_path / "south-again")

    def keeping(job_id, item, *files, state=None, **more):
        if (item, state) == (1, ItemState.ENCODED):
            wait_until(lambda: target.latents)
            source.node.peers.add(
                new.peer(target.address), fingerprints=[pki.fingerprint(new.root)], replace=True
            )
        return keep(job_id, item, *files, state=state, **more)

    source.store.keep = keeping  # type: ignore[method-assign]
    job = source.start().ended(source.submit(*THREE, deadline_s=10))
    assert str(job.state) == "FAILED"
    assert {item for item, _ in target.latents} == {0}
    assert len(audit_rows.records(source.config.paths.store, "latent_sent")) == 1

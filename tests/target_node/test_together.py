"""What came together is recorded together, and a refusal waits for nothing that is still to come."""

from __future__ import annotations

import threading
import time

from tests.node.tiny_nodes import gaussian
from tests.target_node.conftest import asking
from tests.target_node.sending import header, results, sent


def test_latents_that_came_together_are_recorded_together_before_they_are_decoded(target, north) -> None:
    """A line for each, and few writes: the disk is waited for once for what came while it was."""
    contract, sent_all, written = target.negotiate(north), threading.Event(), []
    audit = target.node.audit
    real = audit.write_each

    def write_each(act, each):
        if act == "latent_received":
            if not written:
                assert sent_all.wait(10)
                time.sleep(0.5)  # sent is not yet read
            written.append(len(each))
        return real(act, each)

    def messages():
        yield header(contract, items=40)
        for number in range(40):
            yield from sent(contract, gaussian(3, number), number)
        sent_all.set()

    audit.write_each = write_each
    with target.called_by(north) as stub:
        came = asking(lambda requests, timeout: list(stub.Decode(requests, timeout=timeout)), messages())
    assert set(results(came)) == set(range(40))
    assert sum(written) == 40
    assert len(written) <= 20

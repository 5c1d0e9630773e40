"""A reload reaches calls that run, and contracts that are being agreed on."""

from __future__ import annotations

import pytest

from ddib_fed.errors import ContractUnknown, PolicyDenied
from tests.node.tiny_nodes import gaussian
from tests.source_node.conftest import wait_until
from tests.target_node.conftest import Target, asking
from tests.target_node.sending import header, sent
from tests.target_node.test_receipts import acts


def change(target: Target, **settings: object) -> None:
    node = target.node
    node.config = node.config.with_policy(node.config.policy.model_copy(update=settings))


def test_an_open_call_takes_no_latent_under_a_policy_that_was_replaced(target, north) -> None:
    """The source negotiates again, and hears then what is not allowed; the receipt names the policy of the call."""
    contract, before = target.negotiate(north), target.node.policy_sha256

    def requests():
        yield from (header(contract), *sent(contract, gaussian(30), 0))
        wait_until(lambda: acts(target, "latent_received"))
        change(target, least_evaluations=9)
        yield from sent(contract, gaussian(30), 1)

    with target.called_by(north) as stub, pytest.raises(ContractUnknown):
        asking(lambda messages, timeout: list(stub.Decode(messages, timeout=timeout)), requests())
    assert [line["item"] for line in acts(target, "latent_received")] == [0]
    assert acts(target, "receipt")[0]["policy"] == before
    again = target.negotiate(north)
    with pytest.raises(PolicyDenied):
        target.decode(north, header(again))


def test_a_contract_agreed_on_while_the_policy_changes_is_not_kept(target, north, monkeypatch) -> None:
    """It has the old terms; the next one has the new."""
    write = target.node.audit.write_each

    def writing(act: str, each: object) -> None:
        write(act, each)
        if act == "contract_agreed" and target.node.config.policy.least_evaluations == 8:
            change(target, least_evaluations=9)

    monkeypatch.setattr(target.node.audit, "write_each", writing)
    old = target.negotiate(north)
    with pytest.raises(ContractUnknown):
        target.decode(north, header(old), *sent(old, gaussian(30)))
    new = target.negotiate(north)
    assert (old.limits.min_evaluations, new.limits.min_evaluations) == (8, 9)

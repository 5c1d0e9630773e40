"""The receipt of one Decode call at the target: what came, what went back, and the ends of both audit logs."""

from __future__ import annotations

import logging

from ddib_fed.node.role import NodeContext
from ddib_fed.server.logs import fields
from ddib_fed.trust.audit.log import RECEIPT, Exchanged, anchor_of, anchor_values
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contracts.contract import Contract
from ddib_fed.wire.latent import Anchor
from ddib_fed.wire.mapping import to_message
from target_node.requests import Arrived

log = logging.getLogger(__name__)


class Receipt:
    """Counts as a context; at its end the line is written, however the call ended."""

    def __init__(self, node: NodeContext, peer: str, request_id: str, contract: Contract) -> None:
        self._node = node
        self._peer = peer
        self._request_id = request_id
        self._contract = contract
        self.exchanged = Exchanged()

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None:
        if not self.exchanged.received_items:
            return
        self._log(exc_info[0])
        try:
            self._node.audit.write(
                RECEIPT,
                peer=self._peer,
                request=self._request_id,
                contract=self._contract.digest.hex(),
                policy=self._node.policy_sha256,
                **self.exchanged.values(),
            )
        except OSError:
            log.exception("the receipt of request %s could not be written", self._request_id)

    def _log(self, failure: object) -> None:
        """One line for the call: a job of the peer, or what was left of one."""
        exchanged, peer = self.exchanged, self._peer.removeprefix("spiffe://").partition("/")[0]
        log.info(
            "request %s from %s %s: received %d latents, sent %d translations",
            self._request_id,
            peer,
            "ended" if failure is None else "broke off",
            exchanged.received_items,
            exchanged.sent_items,
            extra=fields(
                request=self._request_id,
                peer=peer,
                received=exchanged.received_items,
                sent=exchanged.sent_items,
            ),
        )

    def received(self, size_bytes: int, anchor: Anchor | None) -> None:
        self.exchanged.received(size_bytes)
        self.exchanged.anchor = anchor or self.exchanged.anchor

    def line(self, arrived: Arrived) -> dict[str, str | int]:
        """What the log says of a latent that came."""
        return {
            "peer": self._peer,
            "request": self._request_id,
            "item": arrived.item,
            "latent": arrived.latent.sha256.hex(),
            "contract": self._contract.digest.hex(),
            **anchor_values(arrived.anchor),
        }

    def own_anchor(self) -> common_pb2.AuditHead | None:
        anchor = anchor_of(self._node.audit.head)
        return None if anchor is None else to_message(anchor, common_pb2.AuditHead)

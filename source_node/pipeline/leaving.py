"""What one try of a job sends to its peer: each latent is checked, and recorded in the audit log, before it leaves.

A try has one contract and one entry of its peer: nothing leaves over a connection that was verified by a root which is
no longer pinned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ddib_fed.bridge.party import ToDecode
from ddib_fed.errors import ContractUnknown
from ddib_fed.node.role import NodeContext
from ddib_fed.trust.audit.log import RECEIPT, Exchanged, anchor_of
from ddib_fed.trust.peers import Peer
from ddib_fed.wire.contracts.contract import Contract
from ddib_fed.wire.latent import ApprovedLatent
from source_node.pipeline.items import approved_latent

log = logging.getLogger(__name__)

TRY_AGAIN_S = 0.1


class Leaving:
    """The latents of one try, and the receipts of its calls."""

    def __init__(self, node: NodeContext, job_id: str, peer: Peer, contract: Contract) -> None:
        self._node = node
        self._peer = peer
        self._job_id = job_id
        self._contract = contract

    def approve(self, latents: Sequence[ToDecode]) -> list[ApprovedLatent]:
        """Latents that are fit to leave, recorded as sent."""
        contract, peer = self._contract, self._contract.target.institution
        if not self._node.peers.get(peer).still_vouches_for(self._peer):
            raise ContractUnknown(
                f"the entry of {peer} was replaced meanwhile: a contract is agreed on over a new connection",
                retry_after_s=TRY_AGAIN_S,
            )
        approved = [approved_latent(latent, contract) for latent in latents]
        head = self._node.audit.write_each(
            "latent_sent",
            [
                {
                    "job": self._job_id,
                    "item": latent.number,
                    "peer": peer,
                    "latent": latent.latent.sha256.hex(),
                    "contract": contract.digest.hex(),
                    "calibration": str(contract.calibration or ""),
                }
                for latent in latents
            ],
        )
        return [each.recorded(anchor_of(head)) for each in approved]

    def receipt(self, exchanged: Exchanged) -> None:
        """Record what a call exchanged, and the peer's anchor; its latents are recorded already."""
        if not exchanged.sent_items:
            return
        try:
            self._node.audit.write(
                RECEIPT,
                job=self._job_id,
                peer=self._contract.target.institution,
                contract=self._contract.digest.hex(),
                policy=self._node.policy_sha256,
                **exchanged.values(),
            )
        except OSError:
            log.exception("the receipt of job %s could not be written to the audit log", self._job_id)

"""The check of a decoded picture before it leaves a target: it must not be nearly a training picture of the model.

A refusal tells the peer which item it was, but neither the distance nor the training picture.
"""

from __future__ import annotations

from collections.abc import Callable

from ddib_fed.bridge.party import Decoded
from ddib_fed.errors import ContractUnknown, Memorised, NotReady
from ddib_fed.metrics.attacks.training_index import TrainingIndex
from ddib_fed.node.role import NodeContext


def demanded_index(node: NodeContext, model: str) -> TrainingIndex | None:
    """The index by which a model's outputs are checked now; None if the policy demands no check.

    Args:
        node: The node.
        model: Digest of one of its warm models.

    Raises:
        NotReady: The policy demands the check, and the active model has no index.
        ContractUnknown: The same of an earlier model: the source agrees on the active one instead.
    """
    if not node.config.policy.memorised:
        return None
    index = node.training_index_of(model)
    if index is None and model != node.active_digest:
        raise ContractUnknown("the contract's model has no index of training pictures", retry_after_s=0.1)
    if index is None:
        raise NotReady("the index of training pictures is not loaded", retry_after_s=5)
    return index


class OutputCheck:
    """Checks the pictures of one Decode call.

    Args:
        node: The node.
        model: Digest of the model that decodes.
        audit: Writes a line of the audit log; may raise `NotReady`.
        peer: Who gets the pictures.
        request_id: Of the call.
    """

    def __init__(
        self, node: NodeContext, model: str, audit: Callable[..., None], peer: str, request_id: str
    ) -> None:
        self._node = node
        self._model = model
        self._audit = audit
        self._peer = peer
        self._request_id = request_id

    def __call__(self, decoded: Decoded) -> None:
        """Return if the policy in force now lets the picture leave.

        Raises:
            Memorised: It is nearly a training picture.
            NotReady, ContractUnknown: As `demanded_index`; or the audit log cannot be written.
        """
        index = demanded_index(self._node, self._model)
        if index is None:
            return
        distance = index.copied(decoded.samples.clip(-1.0, 1.0))
        if distance is None:
            return
        self._audit(
            "output_refused",
            peer=self._peer,
            request=self._request_id,
            item=decoded.number,
            reason=Memorised.reason,
            distance=f"{distance:.3f}",
            index=index.sha256,
        )
        self._node.metrics.items.labels("decode", "failed").inc()
        raise Memorised(
            f"item {decoded.number} of request {self._request_id} for {self._peer} is {distance:.3f} from a training "
            f"picture; below {index.facts.threshold:.3g} nothing is given out",
            hint="[policy] memorised in node.toml names the index; ddib privacy index --threshold makes one that "
            "refuses less",
        )

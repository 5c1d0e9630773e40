"""What a target looks at before a picture leaves: whether it is nearly one that its model was trained on.

The peer reads that, and of which item; neither how near it is, nor to which picture.
"""

from __future__ import annotations

from collections.abc import Callable

from ddib_fed.bridge.party import Decoded
from ddib_fed.errors import Memorised, NotReady
from ddib_fed.node.role import NodeContext


class OutputCheck:
    """Looks at the pictures of one Decode call.

    Args:
        node: The node.
        audit: Writes a line of the audit log.
        peer: Who gets them.
        request_id: Of the call.
    """

    def __init__(self, node: NodeContext, audit: Callable[..., None], peer: str, request_id: str) -> None:
        self._node = node
        self._audit = audit
        self._peer = peer
        self._request_id = request_id

    def __call__(self, decoded: Decoded) -> None:
        """Return if the picture may be given out under the policy that holds now.

        Raises:
            Memorised: It is nearly a training picture.
            NotReady: The policy demands the look, and there is no index to look with; or the audit log cannot be
                written.
        """
        index = self._node.training_index
        if index is None:
            if not self._node.config.policy.memorised:
                return
            raise NotReady("the index of training pictures is not loaded", retry_after_s=5)
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

"""node.toml as a running node applies it: one object, which the node and every view of it on one model share.

Work that lasts names the policy with which it began and asks, before each latent, whether it is still applied.
"""

from __future__ import annotations

from dataclasses import dataclass

from ddib_fed.errors import ContractUnknown
from ddib_fed.node.config import NodeConfig, PolicySection

TRY_AGAIN_S = 0.1
"""After which the same work may begin again, under the new policy."""


@dataclass(slots=True)
class Applied:
    """The configuration in use; a reload replaces it."""

    config: NodeConfig

    def require(self, policy: PolicySection) -> None:
        """Return if a policy is the one that is applied now."""
        if self.config.policy is not policy:
            raise ContractUnknown(
                "the policy was changed meanwhile: a contract is agreed on under the new one",
                retry_after_s=TRY_AGAIN_S,
            )

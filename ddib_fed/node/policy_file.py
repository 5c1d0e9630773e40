"""[policy] of node.toml as a running node applies it, read again on the operator's request.

A file that cannot be used changes nothing: the last valid policy stays, and the node says so until it can be used.
"""

from __future__ import annotations

import logging

from ddib_fed.errors import DdibError
from ddib_fed.node.config import NodeConfig, PolicySection
from ddib_fed.node.policy import policy_digest
from ddib_fed.node.role import NodeContext

log = logging.getLogger(__name__)


class PolicyFile:
    """Applies changes of [policy] without a restart.

    Args:
        node: Whose policy it is.

    Attributes:
        problem: Why the file cannot be used, with the remedy; None if it could when it was last read.
    """

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self.problem: str | None = None

    def reload(self) -> list[str]:
        """Read node.toml again and apply its policy; what changed, one line each.

        Raises:
            OSError: The audit log cannot be written; nothing has changed.
        """
        config = self._node.config
        try:
            read = NodeConfig.load(config.path)
        except DdibError as error:
            self.problem = (
                f"policy: {' '.join(error.detail.split())}; the policy {policy_digest(config)[:12]} stays in use; "
                f"correct {config.path}, then ddib reload"
            )
            log.error("%s", self.problem)  # noqa: TRY400 - a mistake in a file needs no traceback
            self._node.audit.write("policy_refused", policy=policy_digest(config), detail=error.detail)
            return [f"not read: {self.problem}"]
        self.problem = None
        lines = self._apply(config, read.policy)
        waiting = [
            name
            for name in NodeConfig.model_fields
            if name not in {"policy", "node", "train"} and getattr(read, name) != getattr(config, name)
        ]
        return [*lines, *(f"[{name}] changed in {config.path}: a restart applies it" for name in waiting)]

    def _apply(self, config: NodeConfig, policy: PolicySection) -> list[str]:
        if policy == config.policy:
            return []
        changed = config.with_policy(policy)
        before, after = config.policy.model_dump(mode="json"), policy.model_dump(mode="json")
        lines = [
            f"policy.{name}: {before[name]} to {after[name]}" for name in after if before[name] != after[name]
        ]
        self._node.audit.write(
            "policy_changed", before=policy_digest(config), policy=policy_digest(changed), changes=lines
        )
        self._node.config = changed
        return lines

"""[policy] of node.toml as a running node applies it, read again on the operator's request.

A file that cannot be used changes nothing: the last valid policy stays, and the node says so until it can be used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

from ddib_fed.errors import DdibError
from ddib_fed.node.config import NodeConfig, PolicySection
from ddib_fed.node.policy import policy_digest
from ddib_fed.node.role import NodeContext

log = logging.getLogger(__name__)

NO_ENTRY: Final = "no entry"
"""In place of a value: a table does not list the name."""


def policy_changes(before: PolicySection, after: PolicySection) -> list[str]:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return [change for name in new for change in _changes(f"policy.{name}", old[name], new[name])]


def _changes(name: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if not (isinstance(old, dict) and isinstance(new, dict)):
        yield f"{name}: {old} to {new}"
        return
    for key in sorted(old.keys() | new.keys()):
        entry, was, now = f"{name}[{key!r}]", old.get(key, NO_ENTRY), new.get(key, NO_ENTRY)
        if was != now:
            yield f"{entry}: {_moved(was, now) or f'{was} to {now}'}"


def _moved(was: Any, now: Any) -> str:
    if not (isinstance(was, list) and isinstance(now, list)):
        return ""
    moves = {"removed": [v for v in was if v not in now], "added": [v for v in now if v not in was]}
    return "; ".join(f"{verb} {', '.join(map(repr, values))}" for verb, values in moves.items() if values)


class PolicyFile:
    """Applies changes of [policy] without a restart."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self.problem: str | None = None

    def reload(self) -> list[str]:
        """Read node.toml again and apply its policy; what changed, one line each."""
        config = self._node.config
        try:
            read = NodeConfig.load(config.path)
        except DdibError as error:
            return self._refuse(error)
        self.problem = None
        lines = self._apply(config, read.policy)
        read = read.with_roles(config.node.roles)  # a command may run one role of those in the file
        waiting = [
            name
            for name in NodeConfig.model_fields
            if name not in {"policy", "train"} and getattr(read, name) != getattr(config, name)
        ]
        return [*lines, *(f"[{name}] changed in {config.path}: a restart applies it" for name in waiting)]

    def _refuse(self, error: DdibError) -> list[str]:
        """Keep the policy in use, and say what is wrong until the file can be used."""
        used = policy_digest(self._node.config)
        self.problem = (
            f"policy: {' '.join(error.detail.split())}; the policy {used[:12]} stays in use; "
            f"correct {self._node.config.path}, then ddib reload"
        )
        log.error("%s", self.problem)
        self._node.audit.write("policy_refused", policy=used, detail=error.detail)
        return [f"not read: {self.problem}"]

    def _apply(self, config: NodeConfig, policy: PolicySection) -> list[str]:
        """Write the changes to the audit log, then apply them."""
        changed, lines = config.with_policy(policy), policy_changes(config.policy, policy)
        if lines:
            self._node.audit.write(
                "policy_changed", before=policy_digest(config), policy=policy_digest(changed), changes=lines
            )
            self._node.config = changed
        return lines

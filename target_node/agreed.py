"""The contracts that a target has agreed to, in memory: after a restart or under another policy they are made again."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ddib_fed.errors import ContractUnknown
from ddib_fed.node.config import PolicySection
from ddib_fed.node.role import NodeContext
from ddib_fed.wire.contracts.contract import Contract

MAX_CONTRACTS = 8
"""Remembered of one peer: it needs one at a time, and an old one lives on for calls that are on their way."""


class AgreedContracts:
    """Contracts by digest; safe to use from any thread."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._policy = node.config.policy
        self._contracts: OrderedDict[bytes, Contract] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, sha256: bytes) -> bool:
        with self._lock:
            return sha256 in self._contracts

    def remember(self, contract: Contract, policy: PolicySection) -> None:
        """Keep a contract as the newest of its peer, which drops its own oldest one, and none of another peer."""
        institution = contract.source.institution
        with self._lock:
            self._drop_outdated()
            if policy is not self._policy:
                return
            self._contracts[contract.digest] = contract
            self._contracts.move_to_end(contract.digest)
            own = [
                digest for digest, each in self._contracts.items() if each.source.institution == institution
            ]
            for digest in own[:-MAX_CONTRACTS]:
                del self._contracts[digest]

    def get(self, sha256: bytes, institution: str) -> Contract:
        """The contract of this digest with a peer."""
        with self._lock:
            self._drop_outdated()
            contract = self._contracts.get(sha256)
        if contract is None or contract.source.institution != institution:
            raise ContractUnknown("a contract that was not agreed on with this process", retry_after_s=0.1)
        return contract

    def _drop_outdated(self) -> None:
        policy = self._node.config.policy
        if policy is not self._policy:
            self._contracts.clear()
            self._policy = policy

"""What goes to each admitted peer and comes from it, by the policy, suspensions and withdrawals that count now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ddib_fed.node.config import EVERY, PolicySection
from ddib_fed.node.officer.facts import Facts
from ddib_fed.node.policy import uses_of
from ddib_fed.trust.peers.file import Peer


@dataclass(frozen=True, slots=True)
class Recipient:
    """An admitted peer."""

    peer: Peer
    barred: str
    latents: bool
    translations: bool
    calibrates: bool

    @property
    def institution(self) -> str:
        return self.peer.institution


def recipients(facts: Facts) -> tuple[Recipient, ...]:
    return tuple(_recipient(peer, facts) for peer in facts.peers)


def _recipient(peer: Peer, facts: Facts) -> Recipient:
    policy, roles = facts.config.policy, facts.config.node.roles
    barred = ""
    if peer.identity.uri in facts.withdrawn:
        barred = "its node is withdrawn"
    elif peer.institution in facts.suspended:
        barred = f"suspended {facts.suspended[peer.institution]}"
    uses = () if barred else uses_of(peer.institution, policy)
    return Recipient(
        peer,
        barred,
        latents="source" in roles and "send" in uses and _reached(peer.institution, policy),
        translations="target" in roles and "decode" in uses,
        calibrates="calibrate" in uses and bool(policy.calibration),
    )


def _reached(institution: str, policy: PolicySection) -> bool:
    targets = {target for each in policy.clients.values() for target in each}
    return EVERY in targets or any(target.partition("/")[0] == institution for target in targets)


def left_out(found: tuple[Recipient, ...], roles: tuple[str, ...]) -> Iterator[str]:
    """Sentences on the admitted peers that are not used, or not for everything that this node does."""
    for each in found:
        if each.barred:
            yield f"Nothing goes to {each.institution} and nothing is taken from it: {each.barred}."
            continue
        if "source" in roles and not each.latents:
            yield f"No latents go to {each.institution}: [policy.peers] or [policy.clients] does not allow it."
        if "target" in roles and not each.translations:
            yield f"No latents of {each.institution} are decoded: [policy.peers] does not allow it."

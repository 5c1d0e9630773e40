"""Authorization of calls, and what settings are allowed.

Calls are denied by default. The certificate has already been verified; no I/O happens here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from ddib_fed.errors import PeerUnknown, PolicyDenied
from ddib_fed.node.config import PolicySection
from ddib_fed.node.quota import Charge
from ddib_fed.trust.identity import Identity
from ddib_fed.trust.peers.store import Snapshot

if TYPE_CHECKING:
    from ddib_fed.diffusion.plans import SolverSettings

TRANSLATION: Final = "ddib_fed.v1.TranslationService"
DECODING: Final = "ddib_fed.v1.DecodingService"
CALIBRATION: Final = "ddib_fed.v1.CalibrationService"
IDENTITY: Final = "ddib_fed.v1.IdentityService"
HEALTH: Final = "grpc.health.v1.Health"
FOR_PEERS: Final = frozenset({DECODING, CALIBRATION})
"""The target's services, for the nodes of admitted peers."""


class Policy:
    """Which identity may call which method; default deny.

    Args:
        institution: The node's own.
        roles: ``source``, ``target``: what the node serves.
        issuer: Whether it renews certificates of its institution.
    """

    def __init__(self, *, institution: str, roles: Collection[str], issuer: bool) -> None:
        self._institution = institution
        self._services = {HEALTH}
        if "source" in roles:
            self._services.add(TRANSLATION)
        if "target" in roles:
            self._services |= FOR_PEERS
        if issuer:
            self._services.add(IDENTITY)

    def authorise(self, identity: Identity, full_method: str, snapshot: Snapshot) -> None:
        """Return when `identity` may call ``/package.Service/Method``.

        Raises:
            PeerUnknown: A node that is not admitted calls a method for peers.
            PolicyDenied: Anything else.
        """
        service = full_method.removeprefix("/").partition("/")[0]
        own = identity.institution == self._institution
        if service not in self._services:
            raise PolicyDenied(f"{full_method} is not served here")
        if service == HEALTH or (service == IDENTITY and own):
            return
        if service == TRANSLATION and own and identity.kind == "client":
            return
        if service in FOR_PEERS and snapshot.is_admitted_node(identity):
            return
        if service in FOR_PEERS and identity.kind == "node" and not own:
            raise PeerUnknown(
                f"{identity} is not the node in the peer file of {identity.institution}",
                hint="ddib peer list; if it was moved, ddib peer add --replace FILE",
            )
        raise PolicyDenied(f"{identity} may not call {full_method}")


def check_depth(settings: SolverSettings, policy: PolicySection) -> None:
    """Return if latents of the settings' depth are allowed here.

    Raises:
        PolicyDenied: They would keep more of the picture than `policy.least_depth` allows.
    """
    if settings.depth < policy.least_depth:
        raise PolicyDenied(
            f"a depth of {settings.depth:g} where at least {policy.least_depth:g} is allowed",
            hint="omit --depth, or let the operators of both nodes lower policy.least_depth",
            facts={
                "policy": "least_depth",
                "depth": f"{settings.depth:g}",
                "least": f"{policy.least_depth:g}",
            },
        )


def check_encoder(settings: SolverSettings, policy: PolicySection) -> None:
    """Return if latents of the settings' encoder are allowed here.

    Raises:
        PolicyDenied: They show more of the picture than those that `policy.encoders` lists.
    """
    if settings.encoder not in policy.encoders:
        allowed = ", ".join(policy.encoders) or "none"
        raise PolicyDenied(
            f"the encoder {settings.encoder}, where policy.encoders allows {allowed}",
            hint="omit --encoder, or let the operators of both nodes add it to policy.encoders",
            facts={"policy": "encoders", "encoder": settings.encoder, "allowed": allowed},
        )


def check_evaluations(settings: SolverSettings, least: int, *, where: str) -> None:
    """Return if latents may be made with so few evaluations.

    Args:
        settings: Of a job or a Decode call. Flow maps, which are trained for few evaluations, are exempt.
        least: The fewest that are allowed.
        where: What says so.

    Raises:
        PolicyDenied: There are fewer. The latent would not be where the ODE ends, and show more of the picture.
    """
    if settings.solver != "flow-map" and settings.evaluations < least:
        raise PolicyDenied(
            f"{settings.evaluations} evaluations, where {where} demands at least {least}",
            hint=f"--evaluations {least} or more",
            facts={"policy": "least_evaluations", "evaluations": settings.evaluations, "least": least},
        )


def peer_charges(
    policy: PolicySection, institution: str, *, samples: int, evaluations: int
) -> tuple[Charge, ...]:
    """What decoding for a peer is charged.

    Args:
        policy: Of this node.
        institution: The peer.
        samples: How many.
        evaluations: See `quota.evaluations_of`.
    """
    limit = policy.quotas.get(institution, policy.evaluations_per_day)
    return (
        Charge("evaluations_per_day", institution, evaluations, limit),
        Charge("samples_per_day", institution, samples, policy.samples_per_day),
    )


def client_charges(policy: PolicySection, client: str, evaluations: int) -> tuple[Charge, ...]:
    """What a job of an own client is charged: for the legs that this node computes."""
    return (Charge("client_evaluations_per_day", client, evaluations, policy.client_evaluations_per_day),)

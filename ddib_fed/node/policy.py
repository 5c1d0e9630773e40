"""Authorization of calls, and the quota of a peer.

Calls are denied by default. The certificate has already been verified; no I/O happens here.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from ddib_fed.errors import PeerUnknown, PolicyDenied, QuotaSpent
from ddib_fed.node.config import PolicySection
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
DAY_S: Final = 24 * 3600.0
# (request, item) pairs remembered as charged; beyond it the oldest is forgotten, and would be charged again.
MAX_CHARGED: Final = 100_000
# After a crash an item is sent again; a peer that sends "the same" item more often than this pays again.
MAX_REPEATS: Final = 16


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
            PeerSuspended: An admitted node that is suspended does.
            PolicyDenied: Anything else.
        """
        service = full_method.removeprefix("/").partition("/")[0]
        own = identity.institution == self._institution
        if service not in self._services:
            raise PolicyDenied(f"{full_method} is not served here")
        if identity.kind == "recovery" and service != IDENTITY:
            raise PolicyDenied(f"{identity} may not call {full_method}")
        if service == HEALTH or (service == IDENTITY and own):
            return
        if service == TRANSLATION and own and identity.kind == "client":
            return
        if service in FOR_PEERS and snapshot.is_admitted_node(identity):
            snapshot.refuse_suspended(identity.institution)
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


class Quota:
    """Daily quota of decoded samples per peer; each item is charged once, however often it is sent.

    It is kept in memory: a restart resets it.

    Args:
        samples_per_day: 0 for no limit.
        clock: Seconds, monotonic.
    """

    def __init__(self, samples_per_day: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = samples_per_day
        self._clock = clock
        self._lock = threading.Lock()
        self._spent: dict[str, tuple[float, int]] = {}
        self._charged: OrderedDict[tuple[str, str, int], tuple[int, int]] = OrderedDict()

    def charge(self, peer: str, request_id: str, item: int, samples: int = 1) -> None:
        """Count an item against the peer's day, which begins with its first item.

        Raises:
            QuotaSpent: It does not fit; nothing was charged.
        """
        if self._limit <= 0:
            return
        with self._lock:
            key, now = (peer, request_id, item), self._clock()
            paid, repeats = self._charged.get(key, (0, 0))
            if samples <= paid and repeats < MAX_REPEATS:
                self._charged[key] = (paid, repeats + 1)
                return
            since, spent = self._spent.get(peer, (now, 0))
            if now - since >= DAY_S:
                since, spent = now, 0
            if spent + samples > self._limit:
                raise QuotaSpent(
                    f"{peer} has had {spent} of {self._limit} samples of its day and asks for {samples}",
                    facts={"limit": self._limit, "spent": spent, "asked": samples},
                    retry_after_s=max(1.0, since + DAY_S - now),
                )
            self._spent[peer] = (since, spent + samples)
            self._charged[key] = (samples, 0)
            if len(self._charged) > MAX_CHARGED:
                self._charged.popitem(last=False)

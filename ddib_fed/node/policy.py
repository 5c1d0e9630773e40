"""Authorization of calls and jobs, what settings are allowed, and the policy's digest.

Calls are denied by default. The certificate has already been verified; no I/O happens here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from ddib_fed.errors import PeerUnknown, PolicyDenied
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.node.config import EVERY, NodeConfig, PolicySection, Use
from ddib_fed.node.quota import Charge
from ddib_fed.trust.identity import Identity
from ddib_fed.trust.peers import Snapshot
from ddib_fed.wire.canonical import canonical_json
from ddib_fed.wire.contracts.guidance import NO_GUIDANCE, GuidanceTerms

if TYPE_CHECKING:
    from ddib_fed.bridge.model import DomainModel
    from ddib_fed.diffusion.plans import SolverSettings

TRANSLATION: Final = "ddib_fed.v1.TranslationService"
DECODING: Final = "ddib_fed.v1.DecodingService"
CALIBRATION: Final = "ddib_fed.v1.CalibrationService"
IDENTITY: Final = "ddib_fed.v1.IdentityService"
HEALTH: Final = "grpc.health.v1.Health"
HEALTH_CHECK: Final = f"/{HEALTH}/Check"
"""For whoever has a certificate of an admitted institution; the others of `HEALTH` are for the own one."""
FOR_PEERS: Final = frozenset({DECODING, CALIBRATION})
"""The target's services, for the nodes of admitted peers."""
USES: Final[dict[str, Use]] = {DECODING: "decode", CALIBRATION: "calibrate"}
"""What a peer must be allowed to be used for."""
POLICY_FORMAT: Final = "ddib-fed policy 1"
AGREED_LIMITS: Final = (
    "max_evaluations",
    "max_items_per_job",
    "result_days",
)
DEFAULTS: Final = PolicySection()


class Policy:
    """Which identity may call which method; default deny."""

    def __init__(
        self,
        *,
        institution: str,
        roles: Collection[str],
        issuer: bool,
        section: PolicySection = DEFAULTS,
    ) -> None:
        self._section = section
        self._institution = institution
        self._services = {HEALTH}
        if "source" in roles:
            self._services.add(TRANSLATION)
        if "target" in roles:
            self._services |= FOR_PEERS
        if issuer:
            self._services.add(IDENTITY)

    def authorise(self, identity: Identity, full_method: str, snapshot: Snapshot) -> None:
        """Return when `identity` may call ``/package.Service/Method``."""
        service = full_method.removeprefix("/").partition("/")[0]
        own = identity.institution == self._institution
        if service not in self._services:
            raise PolicyDenied(f"{full_method} is not served here")
        if identity.kind == "recovery" and service != IDENTITY:
            raise PolicyDenied(f"{identity} may not call {full_method}")
        if service == HEALTH and not own:
            snapshot.refuse_suspended(identity.institution)
        if (service == HEALTH and (own or full_method == HEALTH_CHECK)) or (service == IDENTITY and own):
            return
        if service == TRANSLATION and own and identity.kind == "client":
            targets_of(identity.name, self._section)
            return
        if service in FOR_PEERS and snapshot.is_admitted_node(identity):
            snapshot.refuse_suspended(identity.institution)
            check_use(identity.institution, USES[service], self._section)
            return
        if service in FOR_PEERS and identity.kind == "node" and not own:
            raise PeerUnknown(
                f"{identity} is not the node in the peer file of {identity.institution}",
                hint="ddib peer list; if it was moved, ddib peer add --replace FILE",
            )
        raise PolicyDenied(f"{identity} may not call {full_method}")


def uses_of(institution: str, policy: PolicySection) -> tuple[Use, ...]:
    return policy.peers.get(institution, policy.peers.get(EVERY, ()))


def check_use(institution: str, use: Use, policy: PolicySection) -> None:
    """Return if a peer may be used so."""
    if use not in uses_of(institution, policy):
        raise PolicyDenied(
            f"{institution} is not allowed to be used for {use!r}",
            hint=f'add "{use}" to "{institution}" in [policy.peers] of node.toml, then restart the node',
            facts={"policy": "peers", "use": use},
        )


def targets_of(client: str, policy: PolicySection) -> tuple[str, ...]:
    """Where an own client may translate to, as `policy.clients` says it."""
    found = policy.clients.get(client, policy.clients.get(EVERY, ()))
    if not found:
        raise PolicyDenied(
            f"the client {client} may not translate",
            hint=f'add "{client}" to [policy.clients] of node.toml, then restart the node',
            facts={"policy": "clients"},
        )
    return found


def check_target(client: str, institution: str, domain: str, policy: PolicySection) -> None:
    """Return if an own client may have its samples translated to a peer's domain."""
    check_use(institution, "send", policy)
    if not {EVERY, institution, f"{institution}/{domain}"} & set(targets_of(client, policy)):
        raise PolicyDenied(
            f"the client {client} may not translate to {institution}/{domain}",
            hint=f'add "{institution}/{domain}" to "{client}" in [policy.clients] of node.toml, then restart the node',
            facts={"policy": "clients", "target": f"{institution}/{domain}"[:200]},
        )


def check_softening(soften_sigma: float, policy: PolicySection) -> None:
    """Return if pictures are softened enough under a contract."""
    if soften_sigma < policy.least_soften_sigma:
        raise PolicyDenied(
            f"pictures softened to {soften_sigma:g}, where at least {policy.least_soften_sigma:g} is demanded",
            hint="a model with more softening (ddib model train --soften-sigma), or a lower policy.least_soften_sigma",
            facts={
                "policy": "least_soften_sigma",
                "soften_sigma": f"{soften_sigma:g}",
                "least": f"{policy.least_soften_sigma:g}",
            },
        )


def policy_digest(config: NodeConfig) -> str:
    """SHA-256, hex, of everything that node.toml allows: [policy], and the limits that an agreement may name."""
    policy = config.policy.model_dump(mode="json")
    limits = config.limits.model_dump(mode="json", include=set(AGREED_LIMITS))
    text = canonical_json({"format": POLICY_FORMAT, "limits": limits, "policy": policy})
    return hashlib.sha256(text).hexdigest()


def check_depth(settings: SolverSettings, policy: PolicySection) -> None:
    """Return if latents of the settings' depth are allowed here."""
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
    """Return if latents of the settings' encoder are allowed here."""
    if settings.encoder not in policy.encoders:
        allowed = ", ".join(policy.encoders) or "none"
        raise PolicyDenied(
            f"the encoder {settings.encoder}, where policy.encoders allows {allowed}",
            hint="omit --encoder, or let the operators of both nodes add it to policy.encoders",
            facts={"policy": "encoders", "encoder": settings.encoder, "allowed": allowed},
        )


def check_evaluations(settings: SolverSettings, least: int, *, where: str) -> None:
    """Return if latents may be made with so few evaluations."""
    if settings.solver != "flow-map" and settings.evaluations < least:
        raise PolicyDenied(
            f"{settings.evaluations} evaluations, where {where} demands at least {least}",
            hint=f"--evaluations {least} or more",
            facts={"policy": "least_evaluations", "evaluations": settings.evaluations, "least": least},
        )


def peer_charges(
    policy: PolicySection, institution: str, *, samples: int, evaluations: int
) -> tuple[Charge, ...]:
    """What decoding for a peer is charged."""
    limit = policy.quotas.get(institution, policy.evaluations_per_day)
    return (
        Charge("evaluations_per_day", institution, evaluations, limit),
        Charge("samples_per_day", institution, samples, policy.samples_per_day),
    )


def client_charges(policy: PolicySection, client: str, evaluations: int) -> tuple[Charge, ...]:
    return (Charge("client_evaluations_per_day", client, evaluations, policy.client_evaluations_per_day),)


def offered_guidance(model: DomainModel, policy: PolicySection) -> GuidanceTerms | None:
    """The guidance that a node offers for decoding with a model; None for none."""
    guide = model.classifier if policy.max_guidance > 0 else None
    terms = GuidanceTerms(
        max_guidance=0.0 if model.manifest.null_class is None else policy.max_guidance,
        max_classifier_scale=0.0 if guide is None else policy.max_guidance,
        classifier_sha256=b"" if guide is None else bytes.fromhex(guide.digest),
        classifier_classes=0 if guide is None else guide.manifest.num_classes or 0,
        clip=model.is_picture and model.manifest.normalisation == Normalisation(),
    )
    return None if terms == NO_GUIDANCE else terms

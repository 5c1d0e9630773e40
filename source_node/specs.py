"""The header of SubmitJob as a checked job spec."""

from __future__ import annotations

from ddib_fed.errors import (
    ContractMismatch,
    DomainNotFound,
    ItemsTooMany,
    MessageInvalid,
    PolicyDenied,
    SettingsInvalid,
    UnknownFields,
)
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.latent_types import FLOAT32
from ddib_fed.node.config import LimitsSection, NodeConfig, PolicySection
from ddib_fed.node.policy import check_depth, check_encoder, check_evaluations, check_target
from ddib_fed.node.role import NodeContext
from ddib_fed.rpc.settings import solver_settings
from ddib_fed.server.interceptors import caller
from ddib_fed.trust.identity import Identity
from ddib_fed.v1 import translation_pb2
from ddib_fed.wire.contracts.contract import MAX_CLASS_NAME
from ddib_fed.wire.contracts.guidance import check_version, guidance_from_pb
from ddib_fed.wire.jobs import LATER_GRIDS, LATER_SOLVERS, Settings
from ddib_fed.wire.latent_types import types_from_pb
from ddib_fed.wire.version import (
    CALIBRATION,
    ECONOMY,
    GUIDANCE,
    PICTURES,
    SPOKEN,
    Version,
    version_difference,
    version_from_pb,
)
from source_node.classes import own_classes, target_classes
from source_node.jobs.records import JOB_DEADLINE_S, JobSpec
from source_node.peer.remote import Described

MAX_DOMAIN_NAME = 64


def caller_uri() -> str:
    return str(caller())


def spec_of(header: translation_pb2.JobHeader, node: NodeContext) -> JobSpec:
    """What the calling client asks for."""
    guidance = guidance_from_pb(header.guidance)
    _check_fields(header, guidance, node.config.limits)
    settings = solver_settings(header.solver)
    spec = JobSpec(
        request_id=header.request_id,
        owner=caller_uri(),
        target_institution=header.target_institution,
        target_domain=header.target_domain,
        solver=Settings(
            settings.solver,
            settings.order,
            settings.evaluations,
            settings.grid,
            settings.depth,
            settings.encoder,
        ),
        cycle=header.cycle,
        keep_latent=header.keep_latent,
        deadline_s=float(header.deadline_s),
        source_class=header.source_class,
        target_class=header.target_class,
        guidance=guidance,
        item_classes=tuple((each.source_class, each.target_class) for each in header.item_classes),
        model_size=header.model_size,
        no_calibration=header.no_calibration,
        latent_type=_latent_type(header),
    )
    check_allowed(spec, node.config)
    if spec.model_size and not node.engine.model.is_picture:
        raise MessageInvalid("points have no size", facts={"field": "model_size"})
    own_classes(node, spec)
    return spec


def check_allowed(spec: JobSpec, config: NodeConfig) -> None:
    """Return if the policy allows a job: when it is submitted, and at each try, for it may be another one by then."""
    policy, settings = config.policy, solver_settings(spec.solver)
    client = Identity.parse(spec.owner).name
    check_target(client, spec.target_institution, spec.target_domain, policy)
    check_depth(settings, policy)
    check_encoder(settings, policy)
    check_evaluations(settings, policy.least_evaluations, where=config.node.institution)
    latent_types(spec, policy)


def check_peer(spec: JobSpec, peer: Described, hop: str) -> None:
    """Refuse at once what can never work with the peer as it is now."""
    if peer.side.domain != spec.target_domain:
        raise DomainNotFound(
            f"{spec.target_institution} serves {peer.side.domain}, not {spec.target_domain}",
            facts={"asked": spec.target_domain[:100], "served": peer.side.domain},
        )
    if peer.version is not None:  # without a common version the contract says so
        check_versions(spec, peer.version, hop)
    target_classes(peer.side, peer.guidance, spec)


def check_versions(spec: JobSpec, version: Version, hop: str) -> None:
    """Return if the version agreed with `hop` can carry the guidance and the solver settings of a job."""
    check_version(spec.guidance, version, hop, SPOKEN)
    wanted = [*spec.solver.later()]
    if spec.latent_type not in {"", FLOAT32}:
        wanted.append((f"latent-type {spec.latent_type}", ECONOMY))
    for what, since in wanted:
        if version < since:
            older = [each for each in SPOKEN if each <= version]
            raise ContractMismatch(
                f"the {what} needs protocol {since}, and {hop} speaks {version}",
                hop=hop,
                hint=f"omit --{what.split()[0]}, or let its operator upgrade ddib-fed",
                differences=(version_difference(SPOKEN, older),),
            )


def latent_types(spec: JobSpec, policy: PolicySection) -> tuple[str, ...]:
    """In what the latents of a job may leave, the preferred type first."""
    if not spec.latent_type:
        return policy.latent_types
    if spec.latent_type not in policy.latent_types:
        allowed = ", ".join(policy.latent_types)
        raise PolicyDenied(
            f"latents as {spec.latent_type}, where policy.latent_types allows {allowed}",
            hint="omit --latent-type, or let the operators of both nodes add it to policy.latent_types",
            facts={"policy": "latent_types", "asked": spec.latent_type, "allowed": allowed},
        )
    return (spec.latent_type,)


def _latent_type(header: translation_pb2.JobHeader) -> str:
    """The type that the client asks for; empty for none."""
    if not header.HasField("latent_type"):
        return ""
    found = types_from_pb([header.latent_type])
    if not found:
        raise MessageInvalid("a latent type of another release", facts={"field": "latent_type"})
    return found[0]


def _check_fields(header: translation_pb2.JobHeader, guidance: Guidance, limits: LimitsSection) -> None:
    """What the header alone says."""
    version = version_from_pb(header.version)
    if version not in SPOKEN:
        raise MessageInvalid(
            "another protocol version", facts={"spoken": ", ".join(map(str, SPOKEN)), "field": "version"}
        )
    _check_version(header, guidance, version)
    if not header.items:
        raise MessageInvalid("a job without items", facts={"field": "items"})
    if header.items > limits.max_items_per_job:
        raise ItemsTooMany(
            f"a job of {header.items} items",
            facts={"items": header.items, "limit_items": limits.max_items_per_job},
        )
    if len(header.item_classes) not in {0, header.items}:
        raise MessageInvalid("classes for none of the items, or for each", facts={"field": "item_classes"})
    if len(header.target_domain) > MAX_DOMAIN_NAME:
        raise MessageInvalid("no domain has so long a name", facts={"field": "target_domain"})
    if len(header.target_class) > MAX_CLASS_NAME:
        raise MessageInvalid("no class has so long a name", facts={"field": "target_class"})
    if header.deadline_s > JOB_DEADLINE_S:
        raise MessageInvalid(
            f"a deadline of {header.deadline_s} s",
            facts={"field": "deadline_s", "limit_s": round(JOB_DEADLINE_S)},
        )
    if header.solver.evaluations > limits.max_evaluations:
        raise SettingsInvalid(
            f"{header.solver.evaluations} evaluations",
            facts={"evaluations": header.solver.evaluations, "limit": limits.max_evaluations},
        )


def _check_version(header: translation_pb2.JobHeader, guidance: Guidance, version: Version) -> None:
    """Whether the version that the client names has every field that it sets."""
    later = {
        "target_class": (PICTURES, bool(header.source_class or header.target_class)),
        "solver.depth": (PICTURES, bool(header.solver.depth)),
        "solver.encoder": (CALIBRATION, bool(header.solver.encoder)),
        "solver.solver": (ECONOMY, header.solver.solver in LATER_SOLVERS),
        "solver.grid": (ECONOMY, header.solver.grid in LATER_GRIDS),
        "guidance": (GUIDANCE, guidance != UNGUIDED),
        "item_classes": (GUIDANCE, len(header.item_classes) > 0),
        "model_size": (GUIDANCE, header.model_size),
        "no_calibration": (CALIBRATION, header.no_calibration),
        "latent_type": (ECONOMY, header.HasField("latent_type")),
    }
    for field, (since, there) in later.items():
        if there and version < since:
            raise UnknownFields(f"protocol {version} knows no {field}", facts={"field": field})

"""The header of SubmitJob as a checked job spec."""

from __future__ import annotations

from ddib_fed.errors import (
    DomainNotFound,
    ItemsTooMany,
    MessageInvalid,
    SettingsInvalid,
)
from ddib_fed.node.config import LimitsSection, NodeConfig
from ddib_fed.node.policy import check_depth, check_encoder, check_evaluations, check_target
from ddib_fed.node.role import NodeContext
from ddib_fed.rpc.settings import solver_settings
from ddib_fed.server.interceptors import caller
from ddib_fed.trust.identity import Identity
from ddib_fed.v1 import translation_pb2
from ddib_fed.wire.contracts.contract import PROTOCOL, require_protocol
from ddib_fed.wire.contracts.guidance import guidance_from_pb
from ddib_fed.wire.jobs import Settings
from source_node.classes import own_classes, target_classes
from source_node.jobs.records import JOB_DEADLINE_S, JobSpec
from source_node.peer.remote import Described


def caller_uri() -> str:
    return str(caller())


def spec_of(header: translation_pb2.JobHeader, node: NodeContext) -> JobSpec:
    """What the calling client asks for."""
    _check_fields(header, node.config.limits)
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
        guidance=guidance_from_pb(header.guidance),
        item_classes=tuple((each.source_class, each.target_class) for each in header.item_classes),
        model_size=header.model_size,
        no_calibration=header.no_calibration,
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


def check_peer(spec: JobSpec, peer: Described) -> None:
    """Refuse at once what can never work with the peer as it is now."""
    if peer.side.domain != spec.target_domain:
        raise DomainNotFound(
            f"{spec.target_institution} serves {peer.side.domain}, not {spec.target_domain}",
            facts={"asked": spec.target_domain[:100], "served": peer.side.domain},
        )
    target_classes(peer.side, peer.guidance, spec)


def _check_fields(header: translation_pb2.JobHeader, limits: LimitsSection) -> None:
    """What the header alone says."""
    require_protocol(header.protocol, PROTOCOL)
    if not header.items:
        raise MessageInvalid("a job without items", facts={"field": "items"})
    if header.items > limits.max_items_per_job:
        raise ItemsTooMany(
            f"a job of {header.items} items",
            facts={"items": header.items, "limit_items": limits.max_items_per_job},
        )
    if len(header.item_classes) not in {0, header.items}:
        raise MessageInvalid("classes for none of the items, or for each", facts={"field": "item_classes"})
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

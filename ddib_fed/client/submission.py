"""The header of SubmitJob from what a caller asks for."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from ddib_fed.client.payload import split_target
from ddib_fed.guidance import Guidance
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.wire.contracts.contract import PROTOCOL
from ddib_fed.wire.contracts.guidance import guidance_to_pb
from ddib_fed.wire.jobs import Settings, settings_to_pb


def job_header(
    target: str,
    settings: Settings,
    *,
    items: int,
    cycle: bool,
    keep_latent: bool,
    request_id: str | None,
    deadline_s: float | None,
    source_class: str,
    target_class: str,
    guidance: Guidance,
    classes: Sequence[tuple[str, str]],
    model_size: bool,
    no_calibration: bool,
) -> pb.JobHeader:
    """The header of a job of that many items; the other arguments are those of `Client.submit`."""
    institution, domain = split_target(target)
    return pb.JobHeader(
        protocol=PROTOCOL,
        request_id=request_id or str(uuid.uuid4()),
        target_institution=institution,
        target_domain=domain,
        solver=settings_to_pb(settings),
        cycle=cycle,
        keep_latent=keep_latent,
        items=items,
        deadline_s=int(deadline_s or 0),
        source_class=source_class,
        target_class=target_class,
        guidance=guidance_to_pb(guidance),
        item_classes=[pb.ItemClasses(source_class=own, target_class=other) for own, other in classes],
        model_size=model_size,
        no_calibration=no_calibration,
    )

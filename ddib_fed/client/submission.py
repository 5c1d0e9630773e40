"""The header of SubmitJob from what a caller asks for, of the oldest protocol version that has all of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from ddib_fed.client.payload import split_target
from ddib_fed.errors import ContractMismatch
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.wire.contracts.guidance import guidance_to_pb
from ddib_fed.wire.jobs import Settings, settings_to_pb
from ddib_fed.wire.latent_types import TYPE_NUMBERS
from ddib_fed.wire.version import (
    CALIBRATION,
    ECONOMY,
    GUIDANCE,
    OLDEST,
    PICTURES,
    SPOKEN,
    Version,
    version_difference,
    versions_to_pb,
)


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
    latent_type: str,
) -> pb.JobHeader:
    """The header of a job of that many items; the other arguments are those of `Client.submit`."""
    institution, domain = split_target(target)
    version = _needed_version(
        settings,
        labelled=bool(source_class or target_class),
        guidance=guidance,
        classes=classes,
        model_size=model_size,
        no_calibration=no_calibration,
        latent_type=latent_type,
    )
    return pb.JobHeader(
        version=versions_to_pb([version])[0],
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
        latent_type=TYPE_NUMBERS[latent_type] if latent_type else None,
    )


def too_old(hop: str, header: pb.JobHeader) -> ContractMismatch:
    """The error for a node that does not know the fields of this header."""
    version = Version(header.version.major, header.version.minor)
    older = [each for each in SPOKEN if each < version]
    return ContractMismatch(
        f"{hop} does not know what protocol {version} added",
        hop=hop,
        hint="omit --guidance, --classifier-scale, --clip, --pairs, --encoder, --grid, --quality, "
        "--latent-type and --no-calibration, or let its operator upgrade ddib-fed",
        differences=(version_difference(SPOKEN, older),),
    )


def _needed_version(
    settings: Settings,
    *,
    labelled: bool,
    guidance: Guidance,
    classes: Sequence[tuple[str, str]],
    model_size: bool,
    no_calibration: bool,
    latent_type: str,
) -> Version:
    """The oldest version of the protocol that has what is asked for; `labelled`: one class is given for all items."""
    version = OLDEST
    if labelled:
        version = PICTURES
    if guidance != UNGUIDED or classes or model_size:
        version = GUIDANCE
    if no_calibration:
        version = CALIBRATION
    if latent_type:
        version = ECONOMY
    return max(version, settings.needs)

"""One job from its submission to the last result on the disk, with the names of its items kept there meanwhile."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.bridge.records.translation_record import DOUBTFUL_BELOW
from ddib_fed.cli.client.choosing import Chosen
from ddib_fed.cli.client.delivery import Delivered, Input, JobFile, deliver, named
from ddib_fed.cli.client.session import explaining_interruption
from ddib_fed.cli.client.translation.display import Progress
from ddib_fed.cli.client.translation.order import Order
from ddib_fed.client.client import Client
from ddib_fed.client.payload import Payload, split_target
from ddib_fed.client.views import JobView, Submitted
from ddib_fed.errors import Cancelled, DdibError

if TYPE_CHECKING:
    from ddib_fed.formats.credentials import Credentials


RESUMES = "to resume: the same command again"
"""The line of a hint above the command that goes on."""


def submit(
    client: Client,
    chosen: Chosen,
    items: Sequence[Payload],
    order: Order,
    out: Path | None,
    *,
    request_id: str = "",
    while_busy: bool = True,
) -> tuple[Submitted, tuple[Input, ...]]:
    """Submit the job, after writing the names of its items to disk."""
    split_target(order.target)
    request_id = request_id or str(uuid.uuid4())
    institution = client.profile.institution
    classes = chosen.classes or [None] * len(items)
    inputs = tuple(
        replace(given, sha256=item.sha256.hex(), asked=order.digest(institution, own))
        for given, item, own in zip(chosen.inputs, items, classes, strict=True)
    )

    def send() -> Submitted:
        return client.submit(
            items,
            order.target,
            order.settings,
            cycle=order.cycle,
            keep_latent=order.keep_latent,
            request_id=request_id,
            deadline_s=order.deadline_s,
            source_class=order.source_class,
            target_class=order.target_class,
            guidance=order.guidance,
            classes=chosen.classes,
            model_size=chosen.by_class,
            no_calibration=order.no_calibration,
            while_busy=while_busy,
        )

    try:
        if out is None:
            return send(), inputs
        with named(out, JobFile(request_id, order.target, inputs)):
            return send(), inputs
    except DdibError as error:
        if not client.aborted:
            raise
        raise Cancelled(
            "interrupted while submitting: the node may have accepted the job",
            hint=f"{RESUMES}\nddib job list --profile {shlex.quote(str(client.profile.path))}",
        ) from error


def receive(
    client: Client,
    job_id: str,
    inputs: tuple[Input, ...],
    progress: Progress,
    out: Path,
    *,
    force: bool,
    doubtful_below: float = DOUBTFUL_BELOW,
    credentials: Credentials | None = None,
    without: Collection[int] = (),
    on_written: Callable[[Delivered], None] | None = None,
) -> tuple[JobView, list[Delivered]]:
    """Watch a job to its end and write its results as they come, also if a part of it failed; in their order."""
    delivered: list[Delivered] = []
    with explaining_interruption(client, job_id, out):
        results = client.results(job_id, on_event=progress.watching(client, job_id))
        for result in deliver(
            client,
            job_id,
            results,
            out,
            inputs,
            force=force,
            doubtful_below=doubtful_below,
            credentials=credentials,
            without=without,
        ):
            delivered.append(result)
            if on_written is not None:
                on_written(result)
        job = client.get(job_id)
    if not without:
        JobFile(job.request_id, job.target, inputs).remove(out)
    return job, sorted(delivered, key=lambda result: result.item)

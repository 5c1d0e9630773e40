"""What became of the files of one command, and whether that is what was asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddib_fed.cli.client.delivery import Delivered
from ddib_fed.cli.client.translation.checking import Entry, LeftOut, listed
from ddib_fed.cli.output import next_steps
from ddib_fed.client.views import JobView, require_finished
from ddib_fed.errors import Cancelled, JobFailed
from ddib_fed.wire.jobs import ItemState, JobState


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the files of one command."""

    total: int
    entries: tuple[Entry, ...]
    delivered: tuple[Delivered, ...]
    earlier: int
    jobs: tuple[JobView, ...]
    left_out: tuple[LeftOut, ...]
    failed: tuple[LeftOut, ...]
    not_submitted: tuple[Path, ...] = ()


def require_translated(outcome: Outcome, hop: str, *, skip_bad: bool) -> None:
    """Return if every job succeeded; with `skip_bad`, also if only some of its items failed."""
    bad = [*outcome.left_out, *outcome.failed]
    rest = len(outcome.not_submitted)
    unsent = f"{rest:,} of {outcome.total:,} files {'was' if rest == 1 else 'were'} not submitted"
    for job in outcome.jobs:
        if skip_bad and (job.state is JobState.FINISHED or failed_by_items(job)):
            continue
        try:
            require_finished(job, hop)
        except (JobFailed, Cancelled) as error:
            error.detail += (f"; {unsent}" if rest else "") + (f"\n{listed(bad)}" if bad else "")
            error.args = (error.detail,)
            if bad:
                without = "the same command with --skip-bad" if len(bad) < outcome.total else ""
                others = f"without {'it' if len(bad) == 1 else 'them'}: {without}" if without else ""
                steps = next_steps(each.as_error(hop) for each in bad)
                error.hint = "\n".join(filter(None, [steps, others, error.hint]))
            if rest:
                error.hint = "\n".join(filter(None, [error.hint, "the rest: the same command again"]))
            raise
    if rest:
        raise JobFailed(unsent, hop="client", hint="the same command again")


def failed_by_items(job: JobView) -> bool:
    return job.state is JobState.FAILED and all(item.state is ItemState.FAILED for item in job.items)

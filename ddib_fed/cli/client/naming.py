"""Names as people type them: the beginning of a job's id, and a misspelt target."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ddib_fed.errors import DdibError, JobNotFound, UsageError
from ddib_fed.names import nearest

if TYPE_CHECKING:
    from ddib_fed.client.client import Client

_WHOLE = re.compile(r"[0-9a-f]{32}")
LOOKED_AT = 1000
"""Newest jobs among which a beginning is looked for: as many as a node lists."""
NAMED = 10


def job_named(client: Client, text: str) -> str:
    """The id of the job whose id is `text` or begins with it; a whole id is not looked up."""
    if _WHOLE.fullmatch(text):
        return text
    known = [job.job_id for job in client.list(LOOKED_AT)]
    found = [text] if text in known else [each for each in known if text and each.startswith(text)]
    if not found:
        close = nearest(text, known)
        raise JobNotFound(
            f"no job of this client begins with {text[:64]!a}",
            hop=client.hop,
            hint=f"did you mean {close}? `ddib job list` lists the jobs" if close else "ddib job list",
        )
    if len(found) > 1:
        more = ", ..." if len(found) > NAMED else ""
        raise UsageError(
            f"{len(found)} jobs begin with {text[:64]!a}", hint=f"one of {', '.join(found[:NAMED])}{more}"
        )
    return found[0]


def suggest_target(error: DdibError, client: Client, target: str) -> None:
    """Put the nearest target that the node lists into the hint of an error about one that it does not know."""
    try:
        known = [each.target for each in client.domains().targets if each.domain]
    except DdibError:
        return
    close = nearest(target, known)
    if target not in known and close:
        error.hint = f"did you mean {close}? `ddib domains` lists the targets"

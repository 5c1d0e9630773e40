"""The lines of the audit log for what clients decide of their jobs, and for what nobody fetched: before it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ddib_fed.trust.audit.log import AuditLog
from source_node.jobs.endings import Recording
from source_node.specs import caller_uri


class Decisions:
    """Writes down what the calling client is about to have done; see `AuditLog.doing`."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    def sending(self, job_id: str, items: Sequence[int]) -> None:
        named = [str(item) for item in items]
        self._audit.write("results_sent", job=job_id, client=caller_uri(), items=named)

    def delivering(self, job_id: str, items: Sequence[int]) -> Recording:
        named = [str(item) for item in items]
        return self._audit.doing("items_delivered", [{"job": job_id, "client": caller_uri(), "items": named}])

    def cancelling(self, job_id: str) -> Recording:
        return self._audit.doing("job_cancel", [{"job": job_id, "client": caller_uri()}])

    def deleting(self, job_id: str) -> Recording:
        return self._audit.doing("job_deleted", [{"job": job_id, "client": caller_uri()}])

    def expiring(self, jobs: Mapping[str, str]) -> Recording:
        """Jobs go, each of a client that did not fetch it in time."""
        return self._audit.doing(
            "job_expired", [{"job": job_id, "client": owner} for job_id, owner in jobs.items()]
        )

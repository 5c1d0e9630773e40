"""The client, as the page uses it; see `ddib_fed.web.backend.Backend`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddib_fed.cli.client.browser.clients import Clients
from ddib_fed.cli.client.browser.translating import Translating
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import Domains
from ddib_fed.errors import DdibError
from ddib_fed.web.backend import Source, TranslationRequest, Watcher, hinted_in_words

LIST_PATIENCE_S = 5.0
"""How long a page waits for a node that is away, before it says so."""


class ClientBackend:
    """Translates as `ddib translate` does."""

    def __init__(self, profile: Profile) -> None:
        self._clients = Clients(profile)

    def domains(self) -> Domains:
        with hinted_in_words(), self._clients.opened(patience_s=LIST_PATIENCE_S) as client:
            return client.domains()

    def translate(
        self,
        sources: Sequence[Source],
        request: TranslationRequest,
        out: Path,
        views: Path,
        watcher: Watcher,
    ) -> None:
        Translating(self._clients, sources, request, out, views, watcher).run()

    def cancel(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        failed: DdibError | None = None
        with hinted_in_words(), self._clients.opened(patience_s=LIST_PATIENCE_S) as client:
            for job_id in job_ids:
                try:
                    client.cancel(job_id)
                except DdibError as error:
                    failed = failed or error
            if failed is not None:
                raise failed

    def close(self) -> None:
        self._clients.close()

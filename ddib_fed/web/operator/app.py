"""The operator's page: it shows, and changes nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ddib_fed.node.config import NodeConfig
from ddib_fed.node.officer.leaving import leaving
from ddib_fed.node.officer.sections import IN_WORDS, sections
from ddib_fed.web.operator.overview import Overview
from ddib_fed.web.pages import answering, application, page


@dataclass(frozen=True, slots=True)
class Operator:
    """What the page works with."""

    overview: Overview

    @classmethod
    def of(cls, config: NodeConfig) -> Operator:
        return cls(Overview(config))

    def app(self) -> Starlette:
        return application([Route("/", answering(self.whole)), Route("/live", answering(self.live))])

    @property
    def _config_file(self) -> str:
        return shlex.quote(str(self.overview.config.path.resolve()))

    def whole(self, request: Request) -> Response:
        """The page."""
        del request
        facts = self.overview.facts()
        return page(
            "operator.html",
            root=".",
            config=self.overview.config,
            config_file=self._config_file,
            facts=facts,
            leaving=leaving(facts),
            sections=[each for each in sections(facts) if each.title not in _LEFT_OUT],
            live=self.overview.live(),
        )

    def live(self, request: Request) -> Response:
        del request
        return page("live.html", live=self.overview.live(), config_file=self._config_file)


_LEFT_OUT = frozenset({IN_WORDS, "Sign-off"})
"""The page has what leaves at its top, and is not signed."""

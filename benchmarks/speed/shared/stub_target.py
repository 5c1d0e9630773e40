"""A target's node as it is, but for an engine that answers at once; for benchmarks of what lies around the engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Self

from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.party import Decoded, Failed, Leg, ToDecode
from ddib_fed.node.config import LimitsSection
from ddib_fed.node.policy import Policy
from ddib_fed.node.server import CallInterceptor, NodeServer
from ddib_fed.security import tls
from target_node import service
from target_node.service import TargetService
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_config, make_context, tiny_bundle


class StubEngine(ServingParty):
    """Answers with the first rows of the latent itself."""

    def __init__(self, rows_back: int) -> None:
        super().__init__(tiny_bundle(), device="cpu", threads=1)
        self._rows_back = rows_back

    def decode_each(
        self,
        latents: Iterable[ToDecode],
        leg: Leg,  # noqa: ARG002
        *,
        end: Callable[[], object] = lambda: None,  # noqa: ARG002
    ) -> Generator[Decoded | Failed, None, None]:
        for each in latents:
            yield Decoded(each.number, each.latent.data[: self._rows_back], None, 0.0)


class StubTarget:
    """South's node over the identity that lies in `folder`; a context manager."""

    def __init__(self, folder: Path, points: int, rows_back: int) -> None:
        config = make_config(folder, "south.example", "target")
        service.MAX_POINTS_PER_ITEM = points  # larger latents than a node takes
        self._engine = StubEngine(rows_back)
        south = _Opened("south.example", folder / "state")
        node = make_context(config, south, self._engine)
        interceptors = [
            CallInterceptor(
                south.name,
                node.peers,
                Policy(institution=south.name, roles=("target",), issuer=False),
                audit=node.audit,
                limits=LimitsSection(max_streams=8),
            ),
        ]
        credentials = tls.ServerCredentials(south.pki, node.peers).grpc
        self._server = NodeServer("127.0.0.1:0", credentials, interceptors, max_streams=8)
        TargetService(node).register(self._server.grpc)
        self.address = self._server.address

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop(0.0)
        self._engine.close()


class _Opened(Institution):
    """An institution whose identity another process made."""

    def __post_init__(self) -> None: ...

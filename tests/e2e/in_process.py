"""A source node's and a target node's real services in this process, over mTLS, and what a client gets of them.

Beside `ddib_fed.testing` for tests that look into a node: its parties, spans and stored calibrations, the modules that
run, and bundles that lie on no disk.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from ddib_fed.calibration.record import SignedCalibration
from ddib_fed.client.client import Client
from ddib_fed.client.jobs import Failure, Request
from ddib_fed.client.results import Translated
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.models.bundle import Bundle
from tests.node.tiny_nodes import make_institution
from tests.source_node.served import Served
from tests.target_node.conftest import Target


class InProcessNodes:
    """North serves one model as the source, south another as the target."""

    def __init__(self, folder: Path, north: Bundle, south: Bundle, **settings: object) -> None:
        self.parties = [ServingParty(bundle, device="cpu", threads=1) for bundle in (north, south)]
        institutions = self.institutions = [
            make_institution(folder / name, f"{name}.example") for name in ("north", "south")
        ]
        institutions[1].admit(institutions[0])
        domain = south.manifest.domain
        self.target = Target(folder / "south", institutions[1], self.parties[1], domain=domain, **settings)
        institutions[0].admit(institutions[1], self.target.server.address)
        self.source = Served(
            folder, institutions[0], self.parties[0], domain=north.manifest.domain, **settings
        )
        self.domain = domain

    def profile(self) -> Path:
        """A client.toml of Alice's, for the command line."""
        path = self.source.folder / "client.toml"
        path.write_text(
            'institution = "north.example"\nname = "alice"\npki = "alice"\n'
            f'source_address = "{self.source.server.address}"\nsource_identity = "node-1.north.example"\n'
        )
        return path

    def agree_on(self, signed: SignedCalibration) -> None:
        for node in (self.source.node, self.target.node):
            node.calibrations.add(signed)

    def translate(self, files: Iterable[Path], request: Request | None = None) -> list[Translated]:
        """What a client gets for its files."""
        with Client(self.source.profile) as client:
            return [*client.translate(files, f"south.example/{self.domain}", request)]

    def refusal(self, files: Iterable[Path], request: Request | None = None) -> Failure | None:
        """Why a client's job failed."""
        with Client(self.source.profile) as client:
            job_id = client.submit(files, f"south.example/{self.domain}", request).job_id
            assert [*client.watch(job_id)]
            return client.get(job_id).error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.source.close()
        self.target.close()
        for party in self.parties:
            party.close()


def same_noise(samples: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    seed = int(np.abs(samples).sum() * 1e4)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

"""A source node's and a target node's real services in this process, over mTLS, and what a client gets of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddib_fed.calibration.record import SignedCalibration
from ddib_fed.client.client import JobResult, collect
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.models.bundle import Bundle
from ddib_fed.protocol.streams import file_header, stream
from ddib_fed.record import Part
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from tests.node.tiny_nodes import make_institution
from tests.source_node.conftest import wait_until
from tests.source_node.served import Served, job_header
from tests.target_node.conftest import Target

SUFFIXES = {
    ".npy": common_pb2.MEDIA_TYPE_NPY,
    ".png": common_pb2.MEDIA_TYPE_PNG,
    ".jpg": common_pb2.MEDIA_TYPE_JPEG,
    ".tif": common_pb2.MEDIA_TYPE_TIFF,
}


class TwoNodes:
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

    def submit(self, *files: Path, **header: object) -> str:
        """Give a job to north; `header` are fields of its header."""
        fields = {"target_domain": self.domain, **header}

        def messages():
            yield job_header(len(files), **fields)
            for path in files:
                data = path.read_bytes()
                yield from stream(pb.SubmitJobRequest, "item", file_header(SUFFIXES[path.suffix], data), data)

        return self.source.ask("SubmitJob", messages()).job_id

    def ended(self, job_id: str) -> pb.Job:
        """The job, once it has ended."""

        def job() -> pb.Job:
            return self.source.ask("GetJob", pb.GetJobRequest(job_id=job_id)).job

        wait_until(lambda: job().finished > 0, 60.0)
        return job()

    def results(self, job_id: str, *parts: Part) -> dict[int, JobResult]:
        """What a client fetches of an ended job, by item."""
        job = self.ended(job_id)
        assert job.items, job.error
        done = [item.index for item in job.items if item.state == pb.ITEM_STATE_DECODED]
        fetched = self.source.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id))
        results = collect(iter(fetched), job_id, done, frozenset({Part.TRANSLATION, *parts}))
        return {result.item: result for result in results}

    def close(self) -> None:
        self.source.close()
        self.target.close()
        for party in self.parties:
            party.close()


def same_noise(samples: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    seed = int(np.abs(samples).sum() * 1e4)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

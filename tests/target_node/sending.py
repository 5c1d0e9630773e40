"""Messages to a target, and what they bring back."""

from __future__ import annotations

import numpy as np

from ddib_fed.data.points import parse_npy
from ddib_fed.latent import Latent
from ddib_fed.protocol.streams import MIN_CHUNK, Announced, assemble, stream
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb


def header(contract, **changes) -> pb.DecodeRequest:
    """The first message of a call."""
    fields = {
        "contract_sha256": contract.digest, "request_id": "job", "items": 2,
        "solver": common_pb2.SolverSettings(evaluations=8), **changes,
    }  # fmt: skip
    return pb.DecodeRequest(header=pb.DecodeHeader(**fields))


def sent(contract, points: np.ndarray, item: int = 0) -> list[pb.DecodeRequest]:
    """The messages of one latent; whatever it holds, as a hostile peer would."""
    data = points.astype("<f4").tobytes()
    latent = Latent.from_array(points)
    tensor = common_pb2.TensorHeader(shape=points.shape, size_bytes=len(data), sha256=latent.sha256)
    head = pb.LatentHeader(item=item, tensor=tensor, contract_sha256=contract.digest)
    return list(stream(pb.DecodeRequest, "latent", head, data))


def torn(contract, item: int = 0) -> pb.DecodeRequest:
    """The first of the two messages of a latent."""
    (message,) = sent(contract, np.zeros((10_000, 2), np.float32), item)
    return pb.DecodeRequest(latent=message.latent, data=message.data[:MIN_CHUNK])


def results(messages) -> dict[int, np.ndarray]:
    """Points by item, out of the messages of an answer."""
    said = (message for message in messages if message.WhichOneof("message") != "progress")

    def opener(head):
        return Announced(head.file.size_bytes, head.file.sha256, 1 << 20)

    return {
        whole.header.item: parse_npy(bytes(whole.data), max_bytes=1 << 20, max_points=1000)
        for whole in assemble(said, {"result": opener})
    }

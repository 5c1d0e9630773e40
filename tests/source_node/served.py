"""North's node for its clients behind its real port, and messages of SubmitJob."""

import uuid
from contextlib import contextmanager

import grpc

from ddib_fed.client.profile import Profile
from ddib_fed.node.config import LimitsSection
from ddib_fed.node.policy import Policy
from ddib_fed.node.server import CallInterceptor, NodeServer
from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.protocol.streams import file_header, stream
from ddib_fed.security import tls
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1 import translation_pb2_grpc as rpc
from source_node.service import SourceService
from tests.node.institutions import issue_client
from tests.node.tiny_nodes import make_config, make_context


class Served:
    """North's node for its clients, started, and Alice's certificate."""

    def __init__(self, folder, north, engine, *, per_identity: int = 8, **settings) -> None:
        self.folder, self.north = folder, north
        config = make_config(folder / "north", "north.example", "source", **settings)
        self.node = make_context(config, north, engine)
        self.service = SourceService(self.node)
        policy = Policy(institution="north.example", roles=("source",), issuer=False)
        interceptors = [
            CallInterceptor(
                "north.example", self.node.peers, policy, limits=LimitsSection(max_streams=8),
                max_streams_of_one=per_identity,
            )
        ]  # fmt: skip
        credentials = tls.ServerCredentials(north.pki, self.node.peers).grpc
        self.server = NodeServer("127.0.0.1:0", credentials, interceptors, max_streams=8)
        self.service.register(self.server.grpc)
        self.server.start()
        self.service.start()
        issue_client(north.pki, folder / "alice", "alice")

    @property
    def profile(self) -> Profile:
        """Alice's."""
        return Profile(
            institution="north.example", source_address=self.server.address, source_identity="node-1.north.example",
            name="alice", pki=str(self.folder / "alice"),
        )  # fmt: skip

    @contextmanager
    def called(self):
        arguments = {"server_name": "node-1.north.example", "pki_folder": self.folder / "alice"}
        with tls.channel(self.server.address, **arguments) as channel:
            yield rpc.TranslationServiceStub(channel)

    def ask(self, name: str, request, timeout: float = 20):
        """The answer to a call, or the error that came back."""
        with self.called() as stub:
            try:
                answer = getattr(stub, name)(request, timeout=timeout)
                return list(answer) if isinstance(answer, grpc.Call) else answer
            except grpc.RpcError as error:
                raise from_rpc_error(error, "source north.example") from error

    def submit(self, *files: bytes, items: int | None = None, **changes) -> str:
        count = len(files) if items is None else items
        return self.ask("SubmitJob", iter([job_header(count, **changes), *messages(files)])).job_id

    def close(self) -> None:
        self.service.close()
        self.server.stop(0.0)
        self.service.release()
        self.node.audit.store.close()


def job_header(items: int, **changes) -> pb.SubmitJobRequest:
    fields = {
        "protocol": PROTOCOL,
        "request_id": str(uuid.uuid4()), "items": items,
        "target_institution": "south.example", "target_domain": "checkerboards",
        "solver": common_pb2.SolverSettings(evaluations=8), **changes,
    }  # fmt: skip
    return pb.SubmitJobRequest(header=pb.JobHeader(**fields))


def messages(files):
    for data in files:
        yield from stream(pb.SubmitJobRequest, "item", file_header(common_pb2.MEDIA_TYPE_NPY, data), data)

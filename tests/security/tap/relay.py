"""A relay between two nodes that keeps every call in clear: its metadata, its messages as bytes, and how it ended.

It takes part in mutual TLS as the target for the source, and as the source for the target. With `tap_between` its keys
and roots are its own; both operators were made to admit them beside the true ones.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, PeerStore, begin_node
from ddib_fed.security.tls import CHANNEL_OPTIONS
from ddib_fed.testing import TwoNodes

UNBOUNDED = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)


@dataclass
class Way:
    """One direction of one call; what an end of the call says beside its messages is among the headers."""

    headers: list[tuple[str, bytes]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)

    def keep(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        for name, value in metadata or ():
            self.headers.append((name, value.encode() if isinstance(value, str) else value))

    @property
    def data(self) -> bytes:
        return b"".join([*(name.encode() + value for name, value in self.headers), *self.messages])


@dataclass
class Call:
    """One call; `path` is "/ddib_fed.v1.DecodingService/Decode"."""

    path: str
    asked: Way = field(default_factory=Way)
    answered: Way = field(default_factory=Way)


class Tap(grpc.GenericRpcHandler):
    """Listens as the target, calls the target as the source, and records both directions."""

    def __init__(
        self, upstream: int, target_pki: Path, source_pki: Path, roots_of: tuple[Path, Path] | None = None
    ) -> None:
        """`roots_of` are the folders with the true roots of target and source, where the keys are the tap's own."""
        self.calls: list[Call] = []
        target, source = pki.load_identity(target_pki), pki.load_identity(source_pki)
        theirs, callers = (
            (folder / "roots.pem").read_bytes() for folder in roots_of or (target_pki, source_pki)
        )
        names = [
            (f"grpc.{each}", target.identity.dns_name)
            for each in ("ssl_target_name_override", "default_authority")
        ]
        self._channel = grpc.secure_channel(
            f"127.0.0.1:{upstream}",
            grpc.ssl_channel_credentials(theirs, source.key_pem, source.cert_chain_pem),
            (*UNBOUNDED, *names, *CHANNEL_OPTIONS),
        )
        self._server = grpc.server(ThreadPoolExecutor(64), handlers=[self], options=UNBOUNDED)
        credentials = grpc.ssl_server_credentials(
            [(target.key_pem, target.cert_chain_pem)], callers, require_client_auth=True
        )
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    @property
    def to_target(self) -> bytes:
        """Everything on the way to the target, one call behind the other."""
        return b"".join(call.asked.data for call in self.calls)

    @property
    def to_source(self) -> bytes:
        """Everything on the way back."""
        return b"".join(call.answered.data for call in self.calls)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        call = Call(handler_call_details.method)
        self.calls.append(call)
        return grpc.stream_stream_rpc_method_handler(lambda asked, context: self._relay(call, asked, context))

    def _relay(self, call: Call, asked: Iterator[bytes], context: Any) -> Iterator[bytes]:
        metadata = [each for each in context.invocation_metadata() if each[0] != "user-agent"]
        call.asked.keep(metadata)

        def forth() -> Iterator[bytes]:
            for message in asked:
                call.asked.messages.append(message)
                yield message

        onward = self._channel.stream_stream(call.path)
        answers = onward(forth(), timeout=context.time_remaining(), metadata=metadata)
        context.add_callback(answers.cancel)
        try:
            for number, message in enumerate(answers):
                if number == 0:
                    context.send_initial_metadata(answers.initial_metadata())
                call.answered.messages.append(message)
                yield message
        except grpc.RpcError:
            context.set_code(answers.code())
            context.set_details(answers.details())
        call.answered.keep([*(answers.initial_metadata() or ()), *(answers.trailing_metadata() or ())])
        call.answered.keep([("grpc-message", answers.details() or "")])
        context.set_trailing_metadata(answers.trailing_metadata() or ())

    def close(self) -> None:
        """End every call, and wait until what it carried is recorded."""
        self._server.stop(1).wait(10)
        self._channel.close()


def tap_between(pair: TwoNodes, folder: Path) -> Tap:
    """From now on north reaches south through a tap; neither must run yet."""
    roots = {
        node.institution: begin_node(folder / node.institution, node.institution, "node-1").certificate
        for node in (pair.source, pair.target)
    }
    tap = Tap(
        pair.target.port,
        folder / pair.target.institution / "pki",
        folder / pair.source.institution / "pki",
        (pair.target.config.paths.pki, pair.source.config.paths.pki),
    )
    for node, other, port in (
        (pair.source, pair.target, tap.port),
        (pair.target, pair.source, pair.source.port),
    ):
        true = pki.parse_certificates((other.config.paths.pki / "ca.pem").read_bytes(), "ca.pem")[0]
        both = (true, roots[other.institution])
        name = Identity(other.institution, "node", "node-1")
        peer = Peer(other.institution, name, f"localhost:{port}", both)
        store = PeerStore(node.config.paths.state, node.institution)
        store.add(peer, fingerprints=[pki.fingerprint(root) for root in both], replace=True)
    return tap

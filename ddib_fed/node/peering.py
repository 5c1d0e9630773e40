"""The peers of a node as its operator keeps them: admitted, tested, suspended, removed, or paired by a code.

Neither torch nor gRPC is imported before a method needs it.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.errors import (
    AlreadyExists,
    ConfigError,
    InputError,
    PeerUnreachable,
    PolicyDenied,
    UnavailableError,
    UsageError,
)
from ddib_fed.files import read_small, write_file
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.protocol.addresses import bracketed, check_bindable, is_loopback, split_address
from ddib_fed.security.identity import Identity, name_constraints
from ddib_fed.security.peers import Peer, parse_peer

if TYPE_CHECKING:
    from ddib_fed.security.pairing import PairedPeer, PairingNode


@dataclass(frozen=True, slots=True)
class Applied:
    """Whether an act changed anything, and whether a running node obeys it already; None if it was not asked."""

    changed: bool
    running: bool | None


@dataclass(frozen=True, slots=True)
class PeerTest:
    """A peer's answer: the connection, its domain (None for a source alone), and its clock's lead in s and in words."""

    institution: str
    connection: str
    domain: str | None
    sample_shape: tuple[int, ...]
    clock_s: float | None
    clock: str = ""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The admitted peer, this node as the other side has it, and warnings for its operator."""

    other: Peer
    own: Peer
    warnings: tuple[str, ...]

    def describe(self) -> tuple[str, ...]:
        """Return lines with the admitted peer and both sides' fingerprints, for operators who compare them too."""
        theirs = [f"theirs       {text}" for text in self.other.fingerprints]
        ours = [f"ours         {text}" for text in self.own.fingerprints]
        return (f"admitted     {self.other.identity} at {self.other.address}", *theirs, *ours)


def apply(config: NodeConfig, *, changed: bool) -> Applied:
    """Have a running node apply a change of its trust; a stopped node applies it when it starts."""
    from ddib_fed.node.admin import ask

    file = peer_store(config).file
    try:
        answer = ask(config, "reload")
    except UnavailableError:
        return Applied(changed, running=False)
    if refused := [line for line in answer if line.startswith("not read:") and file.name in line]:
        raise InputError(
            f"{file} is written, and the running node does not obey it: {refused[0]}",
            hint="run this as the node's own user, and let the file belong to that user",
        )
    return Applied(changed, running=True)


class Peers:
    """The peers of a node. Each change is on the disk, and obeyed by a running node, when a method returns."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._store = peer_store(config)

    def list(self) -> tuple[Peer, ...]:
        """Return the admitted peers by name, suspended ones too."""
        return self._store.list()

    @property
    def suspended(self) -> dict[str, str]:
        """Since when and why each suspended peer is."""
        return dict(self._store.snapshot().suspended)

    def own(self) -> Peer:
        """Return this node as its peer file introduces it."""
        node = self._config.node
        roots = self._store.snapshot().own_roots
        peer = Peer(node.institution, Identity(node.institution, "node", node.name), node.address, roots)
        # As the other side will read it.
        return parse_peer(peer.to_bytes(), f"what {self._config.path} says of this node")

    def export(self, path: str | Path, *, replace: bool = False) -> Peer:
        """Write the file that another institution adds, which holds no secret; raise AlreadyExists if it exists."""
        peer = self.own()
        try:
            write_file(Path(path), peer.to_bytes(), overwrite=replace)
        except AlreadyExists as error:
            error.hint = "choose another file, or replace it with ddib peer export --force"
            raise
        return peer

    def add(
        self,
        file: str | Path,
        *,
        fingerprints: Sequence[str] = (),
        ask: Callable[[Peer], bool] | None = None,
        replace: bool = False,
        unconstrained_root: bool = False,
    ) -> Peer:
        """Admit another institution's node by its peer file, as `export` writes it there.

        `fingerprints` are those that the other operator read out; without them `ask` is called with a new peer and
        returns whether they agree. `replace` permits other data for an admitted institution (else AlreadyExists),
        `unconstrained_root` a root without name constraints. Raise PolicyDenied for a root that is not confirmed or not
        allowed.
        """
        content = read_small(Path(file), hint="ddib peer export writes it, on the other side", pipe=True)
        other = parse_peer(content, str(file))
        _require_constraints(other, unconstrained_root=unconstrained_root)
        known = self._store.snapshot().peers.get(other.institution) == other
        if ask is not None and not (fingerprints or known):
            if not ask(other):
                raise PolicyDenied(
                    "the fingerprint was not confirmed; nothing was added",
                    hint="compare it with the output of `ddib peer export` there; if it differs, stop",
                )
            fingerprints = other.fingerprints
        self._store.add(other, fingerprints=fingerprints, replace=replace)
        return other

    def test(self, institution: str) -> PeerTest:
        """Connect to a peer and ask for its domain; raise an error that names the cause if that fails."""
        import grpc

        from ddib_fed.protocol.calls import described, failure_of_peer, status_of
        from ddib_fed.protocol.contract import PROTOCOL
        from ddib_fed.security.tls import PeerChannels
        from ddib_fed.v1 import decoding_pb2, decoding_pb2_grpc

        peer, hop = self._store.get(institution), f"target {institution}"
        channels = PeerChannels(self._config.paths.pki, self._store, proxy=self._config.proxy)
        try:
            finding = channels.diagnosis(peer)
            if not finding.ok:
                raise finding.as_error(hop)
            channel = channels.get(institution)
            request = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
            side = decoding_pb2_grpc.DecodingServiceStub(channel).DescribeDomain(request, timeout=10).side
            shape = tuple(side.sample_shape)[:5]
            ahead = channel.clock_s
            clock = "" if ahead is None else described(ahead)
            return PeerTest(institution, finding.text, side.domain[:100], shape, ahead, clock)
        except grpc.RpcError as error:
            if status_of(error) is grpc.StatusCode.UNIMPLEMENTED:
                return PeerTest(institution, finding.text, None, (), None)
            failure = failure_of_peer(error, hop)
            if failure.reason == "PEER_UNKNOWN":
                name = self._config.node.name
                failure.hint = (
                    f"that node has not admitted {name}: ddib peer export here, ddib peer add there"
                )
            elif isinstance(failure, PeerUnreachable):  # whose hint would be this command
                failure.hint = "repeat the command, then check that node's log"
            raise failure from error
        finally:
            channels.close()

    def suspend(self, institution: str, reason: str = "") -> Applied:
        """Refuse a peer and send it nothing until `resume`, also over restarts; running calls with it end."""
        return apply(self._config, changed=self._store.suspend(institution, reason=reason))

    def resume(self, institution: str) -> Applied:
        """Admit a suspended peer again; jobs that waited for it continue."""
        changed = self._store.resume(institution)
        return apply(self._config, changed=True) if changed else Applied(changed=False, running=None)

    def remove(self, institution: str) -> Applied:
        """Remove a peer; raise PeerNotFound if it is none."""
        self._store.remove(institution)
        return apply(self._config, changed=True)

    def pair(
        self,
        address: str | None = None,
        code: str | None = None,
        *,
        on_code: Callable[..., object] | None = None,
        on_stranger: Callable[[str], object] | None = None,
        fingerprints: Sequence[str] = (),
        replace: bool = False,
        unconstrained_root: bool = False,
    ) -> Pairing:
        """Admit another institution's node, and be admitted there, by a code that stands in for fingerprints.

        `address` is HOST:PORT of the side that waits and `code` the code that it shows. With `on_code` this side waits,
        at `address` or node.listen, and shows the lines that `on_code` gets; `on_stranger` gets a line for each
        connection without a code. `fingerprints` restricts the roots; the other options are those of `add`. Raise
        Unauthenticated for a wrong code, which is used up then, and DeadlineExceeded if nobody came within five
        minutes.
        """
        from ddib_fed.security.pairing import PairingNode, dial, parse_code

        introduction, store = self.own(), self._store

        def judge(other: Peer) -> None:
            _require_constraints(other, unconstrained_root=unconstrained_root)
            store.judge(other, fingerprints=fingerprints or other.fingerprints, replace=replace)

        def admit(other: Peer) -> None:
            store.add(other, fingerprints=other.fingerprints, replace=replace)

        node = PairingNode(introduction.to_bytes(), judge, admit)
        if on_code is not None:
            return self._paired(introduction, self._wait(node, address, on_code, on_stranger))
        typed = parse_code(code or "")
        try:
            split_address(address or "")
        except ValueError as error:
            hint = "ddib pair HOST:PORT CODE, as the other side shows both"
            raise UsageError(str(error), hint=hint) from error
        return self._paired(introduction, dial(address or "", typed, node, proxy=self._config.proxy))

    def _wait(
        self,
        node: PairingNode,
        at: str | None,
        on_code: Callable[..., object],
        on_stranger: Callable[[str], object] | None,
    ) -> PairedPeer:
        from ddib_fed.security import pairing

        section, code = self._config.node, pairing.new_code()
        shown = section.address
        with self._bound(at) as listener:
            port = listener.getsockname()[1]
            if at is not None or split_address(section.listen, bound=True)[1] != port:
                shown = f"{bracketed(split_address(section.address)[0])}:{port}"
            on_code(
                f"{section.institution} waits for one try in the next {pairing.CODE_LIFE_S / 60:.0f} minutes. "
                "Read this code out by telephone:",
                "",
                f"    {code}",
                "",
                f"there:       ddib pair {shown} {code}",
            )

            def tell(whence: str, why: str) -> None:
                if on_stranger is not None:
                    on_stranger(f"a connection from {whence} had no code: {why}")

            return pairing.listen(listener, code, node, on_stranger=tell)

    def _bound(self, at: str | None) -> socket.socket:
        where = at or self._config.node.listen
        host, port = split_address(where, bound=True)
        try:
            check_bindable(where, "node.listen" if at is None else "--listen")
        except ConfigError as error:
            if at is None:
                again = f"ddib pair --listen {bracketed(host)}:PORT --config {shlex.quote(str(self._config.path))}"
                error.hint = f"the node runs? then another port that the other side reaches: {again}"
            raise
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=8)

    def _paired(self, own: Peer, paired: PairedPeer) -> Pairing:
        other, whence = paired.other, paired.where
        warnings = [*other.warnings]
        if not paired.mutual:
            warnings.append(
                f"warning: whether {other.institution} admitted this node is not known, the connection ended; "
                f"ddib peer test {other.institution} --config {shlex.quote(str(self._config.path))} says"
            )
        with suppress(ValueError):
            whence = split_address(whence)[0]
        if is_loopback(split_address(other.address)[0]) and not is_loopback(whence):
            warnings.append(
                f"warning: {other.address} is an address of that machine alone, and this node cannot dial it; "
                "correct node.address there, and pair again with --force here"
            )
        return Pairing(other, own, tuple(warnings))


def _require_constraints(other: Peer, *, unconstrained_root: bool) -> None:
    if not (unconstrained_root or all(name_constraints(root) for root in other.roots)):
        raise PolicyDenied(
            f"the root of {other.institution} has no name constraints",
            hint="this is so for a general CA; to accept it, add --unconstrained-root",
        )

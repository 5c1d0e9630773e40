"""Pairs this node with another institution's by a code, and tells the operator what to read out and whom it admitted.

What is admitted, and how, is `ddib_fed.node.admitting`; the code stands in for the comparison of fingerprints.
"""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass

from ddib_fed.errors import ConfigError, PolicyDenied, UsageError
from ddib_fed.node.admitting import (
    admit_peer,
    own_peer,
    peer_store,
    require_name_constraints,
    warn_of_letters,
)
from ddib_fed.node.config import NodeConfig
from ddib_fed.rpc.addresses import is_loopback, split_address
from ddib_fed.server.server import check_bindable
from ddib_fed.terminal import say
from ddib_fed.trust.pairing import CODE_LIFE_S, Paired, dial, listen, new_code, parse_code
from ddib_fed.trust.peers import Peer


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Whom the operator is ready to admit."""

    institution: str | None = None
    replace: bool = False
    unconstrained_root: bool = False


class _Here:
    """This node as a party of the exchange."""

    def __init__(self, config: NodeConfig, options: PairOptions) -> None:
        self._config = config
        self._options = options
        self.peer = own_peer(config)

    @property
    def own(self) -> bytes:
        return self.peer.to_bytes()

    def judge(self, other: Peer) -> None:
        options = self._options
        if options.institution not in {None, other.institution}:
            raise PolicyDenied(
                f"{other.institution} has the code, but {options.institution} was expected",
                hint="ask who answered the telephone; --expect names whom you mean",
            )
        if not options.unconstrained_root:
            require_name_constraints(other)
        peer_store(self._config).judge(other, fingerprints=other.fingerprints, replace=options.replace)

    def admit(self, other: Peer) -> None:
        admit_peer(self._config, other, other.fingerprints, replace=self._options.replace)


def pair_listening(
    config: NodeConfig, *, at: str | None = None, options: PairOptions = PairOptions()
) -> Paired:
    """Show a code, wait for the other side to come with it, and admit that side."""
    here, code = _Here(config, options), new_code()
    with _bound(config, at) as listener:
        shown = _shown(config, at, listener.getsockname()[1])
        say(
            f"{config.node.institution} waits for one try in the next {CODE_LIFE_S / 60:.0f} minutes. "
            "Read this code out by telephone:",
            "",
            f"    {code}",
            "",
            f"there:       ddib pair {shown} {code}",
        )
        paired = listen(
            listener,
            code,
            here,
            on_stranger=lambda whence, why: say(f"a connection from {whence} had no code: {why}", err=True),
        )
    _show(config, here.peer, paired)
    return paired


def pair_dialling(
    config: NodeConfig, address: str, code: str, *, options: PairOptions = PairOptions()
) -> Paired:
    """Connect to the side that waits, prove the code, and admit that side."""
    try:
        split_address(address)
    except ValueError as error:
        raise UsageError(str(error), hint="ddib pair HOST:PORT CODE, as the other side shows both") from error
    checked = parse_code(code)
    here = _Here(config, options)
    paired = dial(address, checked, here, proxy=config.proxy)
    _show(config, here.peer, paired)
    return paired


def _shown(config: NodeConfig, at: str | None, port: int) -> str:
    if at is None and split_address(config.node.listen, bound=True)[1] == port:
        return config.node.address
    return f"{_in_address(split_address(config.node.address)[0])}:{port}"


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bound(config: NodeConfig, at: str | None) -> socket.socket:
    where = at or config.node.listen
    try:
        check_bindable(where, "node.listen" if at is None else "--at")
    except ConfigError as error:
        if at is None:
            host = split_address(config.node.listen, bound=True)[0]
            again = (
                f"ddib pair --listen --at {_in_address(host)}:PORT --config {shlex.quote(str(config.path))}"
            )
            error.hint = f"the node runs? then another port that the other side reaches: {again}"
        raise
    host, port = split_address(where, bound=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=8)


def _show(config: NodeConfig, own: Peer, paired: Paired) -> None:
    """Whom this node admitted, and the two fingerprints, for whoever wants to compare them all the same."""
    other = paired.other
    say(f"admitted     {other.identity} at {other.address}")
    warn_of_letters(other)
    say(*(f"theirs       {text}" for text in other.fingerprints))
    say(*(f"ours         {text}" for text in own.fingerprints))
    if not paired.mutual:
        say(
            f"warning: whether {other.institution} admitted this node is not known, the connection ended; "
            f"ddib peer test {other.institution} --config {shlex.quote(str(config.path))} says",
            err=True,
        )
    whence = paired.where if ":" not in paired.where else _host(paired.where)
    if is_loopback(split_address(other.address)[0]) and not is_loopback(whence):
        say(
            f"warning: {other.address} is an address of that machine alone, and this node cannot dial it; "
            "correct node.address there, and pair again with --replace here",
            err=True,
        )


def _host(where: str) -> str:
    try:
        return split_address(where)[0]
    except ValueError:
        return where

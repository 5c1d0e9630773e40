"""The connection under a handshake, directly or through the configured proxy, and why there is none."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from ddib_fed.rpc.addresses import split_address
from ddib_fed.rpc.proxy import Proxy, TunnelRefused
from ddib_fed.trust.finding import Finding, host_and_port, short


@dataclass(frozen=True, slots=True)
class Way:
    """The way to a node.

    Attributes:
        address: Its ``host:port``.
        proxy: What leads there; None for a direct connection.
        timeout_s: For connecting.
    """

    address: str
    proxy: Proxy | None
    timeout_s: float

    def connect(self) -> socket.socket:
        """A connection that leads to the node.

        Raises:
            OSError: The node, or the proxy, cannot be reached.
            TunnelRefused: The proxy opens no tunnel.
        """
        if self.proxy is not None:
            return self.proxy.connect(self.address, self.timeout_s)
        return socket.create_connection(split_address(self.address), timeout=self.timeout_s)

    def problem(self, error: OSError | TunnelRefused) -> Finding:
        """What an error of `connect` means."""
        if self.proxy is None:
            assert isinstance(error, OSError)  # a proxy raises the other one
            return _no_connection(error, self.address, self.timeout_s)
        if isinstance(error, OSError):
            found = _no_connection(error, self.proxy.address, self.timeout_s)
            return Finding(
                "proxy-unreachable",
                f"the proxy that the configuration names cannot be reached: {found.text}",
                f"{found.remedy}; compare `proxy` in the configuration with what this network's operators say",
            )
        return self._refused(error, self.proxy)

    def _refused(self, error: TunnelRefused, proxy: Proxy) -> Finding:
        answered = f"the proxy {proxy.address} answered {error.code} ({short(error.words)})"
        look = f"curl -v --proxytunnel -x http://{proxy.address} https://{self.address} shows its answer"
        if error.code == 0:
            begins = f'begins with "{short(error.words)}"' if error.words else "says nothing"
            return Finding(
                "not-a-proxy",
                f"what answers at {proxy.address} is no HTTP proxy: it {begins}",
                f"compare `proxy` in the configuration with what this network's operators say; {look}",
            )
        if error.code == 407:
            wrong = (
                "the login in the file of `proxy_login` is not accepted"
                if proxy.login
                else "it asks for a login"
            )
            return Finding(
                "proxy-login",
                f"{answered}: {wrong}",
                "put USER:PASSWORD into a file of mode 600, and name it as `proxy_login` beside `proxy`; where the "
                f"proxy takes no such login (NTLM, Kerberos), its operators must pass {self.address} without one",
            )
        if error.code in {502, 503, 504}:
            return Finding(
                "proxy-no-way",
                f"{answered}: it cannot reach {self.address}",
                f"is the node running there, and its address right? {look}",
            )
        return Finding(
            "proxy-refused",
            f"{answered}: it opens no tunnel to {self.address}",
            f"ask its operators to allow CONNECT to {self.address}, without TLS inspection; {look}",
        )


def _no_connection(error: OSError, address: str, timeout_s: float) -> Finding:
    host, _port = split_address(address)
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return Finding(
                "name-server",
                f"the name {host} cannot be looked up: {error.strerror}",
                f"getent hosts {host}; does this machine reach its name server?",
            )
        return Finding(
            "name-not-found",
            f"there is no host {host}",
            f"getent hosts {host}; compare the address with its operator's",
        )
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return Finding(
            "timeout",
            f"nothing answers at {address} within {timeout_s:.0f} s: a firewall drops connections, or it is off",
            f"nc -vz {host_and_port(address)}; let the firewalls of both sides pass {address}; where this network "
            'only lets a proxy out: proxy = "http://HOST:PORT" in the configuration',
        )
    if error.errno == errno.ECONNREFUSED:
        return Finding(
            "nothing-listens",
            f"nothing listens at {address} ({error.strerror})",
            f"is the node running there (behind a relay: is its tunnel up), and is the port right? "
            f"nc -vz {host_and_port(address)}",
        )
    if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}:
        return Finding(
            "no-route",
            f"there is no way to {address} ({error.strerror})",
            f"ip route get {host}; ask the network's operators",
        )
    return Finding(
        "no-connection",
        f"no connection to {address}: {error.strerror or error}",
        f"nc -vz {host_and_port(address)}",
    )

"""The connection under a handshake, directly or through the configured proxy, and why there is none."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

from ddib_fed.rpc.addresses import split_address
from ddib_fed.rpc.proxy import Proxy, TunnelRefused
from ddib_fed.trust.finding import Finding, short
from ddib_fed.trust.unreached import no_connection, unreached


@dataclass(frozen=True, slots=True)
class Way:
    """The way to a node."""

    address: str
    proxy: Proxy | None
    timeout_s: float
    asks_environment: bool = False

    def connect(self) -> socket.socket:
        """A connection that leads to the node."""
        if self.proxy is not None:
            return self.proxy.connect(self.address, self.timeout_s)
        return socket.create_connection(split_address(self.address), timeout=self.timeout_s)

    def within(self, seconds: float) -> Way:
        return replace(self, timeout_s=min(self.timeout_s, seconds))

    def problem(self, error: OSError | TunnelRefused) -> Finding:
        """What an error of `connect` means."""
        if self.proxy is None:
            assert isinstance(error, OSError)  # a proxy raises the other one
            why = no_connection if self.asks_environment else unreached
            return why(error, self.address, self.timeout_s)
        if isinstance(error, OSError):
            found = unreached(error, self.proxy.address, self.timeout_s)
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

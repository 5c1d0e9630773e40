"""Renews a node's certificate before it expires: with the own root, through the issuer, or by a command.

A private key is made where it is used and stays there; only a request and a certificate are sent. A node
that cannot renew reports it in its health while the old certificate is still valid.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from ddib_fed.errors import ConfigError, DdibError, Unauthenticated
from ddib_fed.node.certificates.standing import not_accepted, own_authority, own_credentials
from ddib_fed.node.config import NodeConfig
from ddib_fed.trust.identity import Identity
from ddib_fed.trust.pki import (
    Credentials,
    has_authority,
    issue_to_folder,
    load_identity,
    load_recovery,
    parse_certificates,
)
from ddib_fed.trust.renewal import Clock, check_successor, is_due, renew_through, utc_now

log = logging.getLogger(__name__)

# Up to this share of the lifetime earlier, so that nodes started together do not all renew in the same minute.
JITTER: Final = 0.05
CHECK_INTERVAL_S: Final = 10.0
COMMAND_TIMEOUT_S: Final = 300.0
LONGEST_PAUSE_S: Final = 600.0
TRIES_PER_LIFE: Final = 20
"""At least so often, in the time of a certificate's life, is a renewal that failed tried again."""


def retry_pause(failures: int, life: timedelta, interval_s: float) -> timedelta:
    longest = max(interval_s, min(LONGEST_PAUSE_S, life.total_seconds() / TRIES_PER_LIFE))
    return timedelta(seconds=min(longest, interval_s * 2.0 ** min(failures - 1, 16)))


def renew_node(config: NodeConfig, *, now: datetime | None = None) -> Credentials:
    """Renew a node's certificate in the way that its configuration and folder provide."""
    folder, moment = config.paths.pki, now or utc_now()
    if has_authority(folder):
        life = config.identity.life("node")
        authority = own_authority(config)
        return issue_to_folder(authority, folder, "node", config.node.name, now=moment, lifetime=life)
    if config.identity.renew_command is not None:
        return _run_command(config.identity.renew_command, folder, moment)
    if config.identity.issuer is None:
        raise ConfigError(
            "the certificate cannot be renewed: no ca.key here, and neither identity.issuer nor "
            "identity.renew_command in node.toml",
            hint='add [identity] issuer = "NODE@HOST:PORT", the issuing node of this institution',
        )
    name, _at, address = config.identity.issuer.partition("@")  # its form is the configuration's business
    issuer = Identity(config.node.institution, "node", name)
    return renew_through(
        folder, address=address, server_name=issuer.dns_name, hop=f"issuer {issuer}", now=moment
    )


def _run_command(command: tuple[str, ...], folder: Path, now: datetime) -> Credentials:
    """Run the operator's command, which must leave a new leaf.pem, leaf.key and roots.pem in the folder."""
    current = load_identity(folder)
    environment = {**os.environ, "DDIB_PKI_FOLDER": str(folder)}
    try:
        done = subprocess.run(
            command, env=environment, timeout=COMMAND_TIMEOUT_S, check=False, capture_output=True
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ConfigError(f"identity.renew_command {command[0]!r} could not be run: {exc}") from exc
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()[-500:]
        raise ConfigError(f"identity.renew_command {command[0]!r} ended with {done.returncode}: {text}")
    renewed = load_identity(folder)
    if is_due(renewed, now):
        raise ConfigError(f"identity.renew_command {command[0]!r} left no new certificate in {folder}")
    certificate = parse_certificates(renewed.cert_chain_pem, "leaf.pem")[0]
    roots = parse_certificates(renewed.roots_pem, "roots.pem")
    try:
        check_successor(current, certificate, roots, now, f"the files it left in {folder}")
    except Unauthenticated as exc:
        raise ConfigError(f"identity.renew_command {command[0]!r}: {exc.detail}") from exc
    return renewed


def recover_at_start(config: NodeConfig, *, now: datetime | None = None) -> str | None:
    """Renew an expired or due certificate before the port is bound."""
    moment, folder = now or utc_now(), config.paths.pki
    if has_authority(folder):  # it signs for others too, also while the node's own certificate is valid
        own_authority(config)
    if has_authority(folder) and not (folder / "leaf.pem").exists():
        renew_node(config, now=moment)
        return "made the node's first certificate"
    credentials = own_credentials(config)
    problem = not_accepted(credentials, moment)
    if problem is None and not is_due(credentials, moment):
        return None
    try:
        renewed = renew_node(config, now=moment)
    except DdibError as error:
        if problem is None:
            return f"the certificate could not be renewed: {error.detail}"
        raise Unauthenticated(
            f"{problem}, and could not be renewed: {error.detail}",
            hint=error.hint or "ddib pki request, have it signed by the issuer, then ddib pki install",
        ) from error
    return f"renewed the certificate, good until {renewed.not_after:%Y-%m-%d %H:%M} UTC"


class RenewalThread:
    """Renews a node's certificate while it runs."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        clock: Clock = utc_now,
        on_tick: Callable[[], object] | None = None,
        interval_s: float = CHECK_INTERVAL_S,
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_tick = on_tick
        self._interval_s = interval_s
        self._jitter = random.uniform(0.0, JITTER)  # noqa: S311 - spreads load, keeps no secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self._asked_early = False
        self._failures = 0
        self._failed_at: datetime | None = None
        self.problem: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it when it was started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._interval_s)

    def _first_recovery(self) -> bool:
        """Whether to renew early, once: a node just enrolled has no certificate for recovery yet."""
        folder, asked = self._config.paths.pki, self._asked_early
        self._asked_early = True
        through_issuer = not has_authority(folder) and self._config.identity.renew_command is None
        return (
            not asked and through_issuer and bool(self._config.identity.issuer) and not load_recovery(folder)
        )

    def look(self) -> None:
        """Renew if it is due; a failure becomes `problem` and is retried at a later check, see `retry_pause`."""
        try:
            if self._on_tick is not None:
                self._on_tick()
            own = load_identity(self._config.paths.pki)
            if is_due(own, self._clock(), jitter=self._jitter) or self._first_recovery():
                if self._waits(own):
                    return
                self._renew()
            self.problem = None
        except Exception as error:  # the thread must outlive any failure
            if self.problem is None:
                foreseen = isinstance(error, DdibError)
                log.error(  # noqa: TRY400 - a traceback only where nobody foresaw the error
                    "the certificate could not be renewed; it is tried again: %s",
                    error,
                    exc_info=not foreseen,
                )
            self.problem = f"renewal: {error}"

    def _renew(self) -> None:
        now = self._clock()
        try:
            renewed = renew_node(self._config, now=now)
        except BaseException:
            self._failures, self._failed_at = self._failures + 1, now
            raise
        self._failures, self._failed_at = 0, None
        log.info("renewed the certificate, good until %s", renewed.not_after)
        if warning := renewed.root_warning(now):
            log.warning("%s", warning)

    def _waits(self, own: Credentials) -> bool:
        if self._failed_at is None:
            return False
        pause = retry_pause(self._failures, own.not_after - own.not_before, self._interval_s)
        return timedelta(0) <= self._clock() - self._failed_at < pause

"""What a node allows: which identity may call what, the settings of [policy], and quotas of a day, counted on the disk.

A day begins with the first charge against a quota, and everything is free again a day later. What is on the disk is
ahead of what was spent by up to a ten-thousandth of the limit: a charge is on the disk before the work that it is for
begins, most charges write nothing, and a kill gives nothing back. An orderly stop writes the exact numbers.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ddib_fed.errors import DiskFull, NotReady, PeerUnknown, PolicyDenied, QuotaSpent, SettingsInvalid
from ddib_fed.files import canonical_json
from ddib_fed.node.config import EVERY, NodeConfig, PolicySection, Use
from ddib_fed.record import UNGUIDED, Guidance
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Snapshot
from ddib_fed.store import NodeStore, Transaction
from ddib_fed.v1.common_pb2 import GuidanceTerms

if TYPE_CHECKING:
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.engine.model import DomainModel

log = logging.getLogger(__name__)


HEALTH: Final = "grpc.health.v1.Health"
HEALTH_CHECK: Final = f"/{HEALTH}/Check"
"""Any certificate of an admitted institution may call it; the rest of `HEALTH` is for the own institution."""
IDENTITY: Final = "ddib_fed.v1.IdentityService"
TRANSLATION: Final = "ddib_fed.v1.TranslationService"
USES: Final[dict[str, Use]] = {
    "ddib_fed.v1.DecodingService": "decode",
    "ddib_fed.v1.CalibrationService": "calibrate",
}
"""The target's services, for the nodes of admitted peers, and what [policy.peers] has to allow."""


class Policy:
    def __init__(
        self, *, institution: str, roles: Collection[str], issuer: bool, section: PolicySection | None = None
    ) -> None:
        self._section = section or PolicySection()
        self._institution = institution
        self._services = {HEALTH}
        self._services |= {TRANSLATION} if "source" in roles else set()
        self._services |= USES.keys() if "target" in roles else set()
        self._services |= {IDENTITY} if issuer else set()

    def authorise(self, identity: Identity, full_method: str, snapshot: Snapshot) -> None:
        """Raise PolicyDenied or PeerUnknown unless `identity` may call ``/package.Service/Method``."""
        service = full_method.removeprefix("/").partition("/")[0]
        is_own, kind = identity.institution == self._institution, identity.kind
        denied = PolicyDenied(f"{identity} may not call {full_method}")
        if service not in self._services:
            raise PolicyDenied(f"{full_method} is not served here")
        if kind == "recovery" and service != IDENTITY:
            raise denied
        if service == HEALTH and (is_own or full_method == HEALTH_CHECK):
            if not is_own:
                snapshot.refuse_suspended(identity.institution)
        elif service == IDENTITY and is_own:
            return
        elif service == TRANSLATION and is_own and kind == "client":
            targets_of(identity.name, self._section)
        elif service in USES and snapshot.is_admitted_node(identity):
            snapshot.refuse_suspended(identity.institution)
            check_use(identity.institution, USES[service], self._section)
        elif service in USES and kind == "node" and not is_own:
            raise PeerUnknown(
                f"{identity} is not the node in the peer file of {identity.institution}",
                hint="ddib peer list; if it was moved, ddib peer add --force FILE",
            )
        else:
            raise denied


POLICY_FORMAT: Final = "ddib-fed policy 1"
AGREED_LIMITS: Final = ("max_evaluations", "max_items_per_job", "result_days")


def policy_digest(config: NodeConfig) -> str:
    """SHA-256, hex, of everything that node.toml allows: [policy], and the limits that an agreement may name."""
    policy = config.policy.model_dump(mode="json")
    limits = config.limits.model_dump(mode="json", include=set(AGREED_LIMITS))
    text = canonical_json({"format": POLICY_FORMAT, "limits": limits, "policy": policy})
    return hashlib.sha256(text).hexdigest()


def uses_of(institution: str, policy: PolicySection) -> tuple[Use, ...]:
    return policy.peers.get(institution, policy.peers.get(EVERY, ()))


def _denied(setting: str, detail: str, hint: str, **facts: Any) -> PolicyDenied:
    return PolicyDenied(detail, hint=hint, facts={"policy": setting, **facts})


def check_use(institution: str, use: Use, policy: PolicySection) -> None:
    if use not in uses_of(institution, policy):
        hint = f'add "{use}" to "{institution}" in [policy.peers] of node.toml, then restart the node'
        raise _denied("peers", f"{institution} is not allowed to be used for {use!r}", hint, use=use)


def targets_of(client: str, policy: PolicySection) -> tuple[str, ...]:
    """Return the targets of an own client in `policy.clients`; raise PolicyDenied if it has none."""
    targets = policy.clients.get(client, policy.clients.get(EVERY, ()))
    if not targets:
        hint = f'add "{client}" to [policy.clients] of node.toml, then restart the node'
        raise _denied("clients", f"the client {client} may not translate", hint)
    return targets


def check_target(client: str, institution: str, domain: str, policy: PolicySection) -> None:
    """Raise unless an own client may have its samples translated to a peer's domain."""
    check_use(institution, "send", policy)
    target = f"{institution}/{domain}"
    if not {EVERY, institution, target} & set(targets_of(client, policy)):
        hint = f'add "{target}" to "{client}" in [policy.clients] of node.toml, then restart the node'
        detail = f"the client {client} may not translate to {target}"
        raise _denied("clients", detail, hint, target=target[:200])


def _require_least(setting: str, what: str, found: float, least: float, who: str, hint: str = "") -> None:
    if found < least:
        name = setting.removeprefix("least_")
        detail = f"{what} {found:g}, where {who} demands at least {least:g}"
        raise _denied(setting, detail, hint, **{name: f"{found:g}", "least": f"{least:g}"})


def check_softening(soften_sigma: float, policy: PolicySection) -> None:
    hint = (
        "a model with more softening (ddib model train --soften-sigma), or a lower policy.least_soften_sigma"
    )
    least = policy.least_soften_sigma
    _require_least("least_soften_sigma", "pictures softened to", soften_sigma, least, "the policy", hint)


def check_settings(settings: SolverSettings, policy: PolicySection, *, where: str) -> None:
    _require_least("least_depth", "a depth of", settings.depth, policy.least_depth, where)
    _require_least("least_share", "a share of", settings.share, policy.least_share, where)
    check_evaluations(settings, policy.least_evaluations, where=where)


def check_evaluations(settings: SolverSettings, least: int, *, where: str) -> None:
    if settings.solver != "flow-map":
        _require_least("least_evaluations", "evaluations:", settings.evaluations, least, where)


def check_most_evaluations(evaluations: int, limit: int) -> None:
    if evaluations > limit:
        raise SettingsInvalid(
            f"{evaluations} evaluations", facts={"evaluations": evaluations, "limit": limit}
        )


def offered_guidance(model: DomainModel, policy: PolicySection) -> GuidanceTerms:
    """Return the guidance that a node offers for decoding with a model."""
    guide, units = model.classifier if policy.max_guidance > 0 else None, model.manifest.normalisation
    return GuidanceTerms(
        max_guidance=0.0 if model.manifest.null_class is None else policy.max_guidance,
        max_classifier_scale=0.0 if guide is None else policy.max_guidance,
        classifier_sha256=b"" if guide is None else bytes.fromhex(guide.digest),
        classifier_classes=0 if guide is None else guide.manifest.num_classes or 0,
        clip=model.is_picture
        and units == type(units)()
        and model.bundle.autoencoder is None,  # those of [-1, 1]
    )


DAY_S: Final = 24 * 3600.0
AHEAD: Final = 10_000
"""Persist the quota in 1/N steps, so that an account writes at most N times a day."""
RETRY_S: Final = 30.0


def evaluations_of(
    samples: int,
    sample_shape: Sequence[int],
    evaluations: int,
    guidance: Guidance = UNGUIDED,
    *,
    round_trip: bool = False,
) -> int:
    """Return the cost of a leg: network evaluations of points, or of pixels."""
    return samples * math.prod(sample_shape[1:]) * evaluations * (guidance.predictions + round_trip)


class Charge(NamedTuple):
    """An amount against one quota, with its limit; 0 for none."""

    quota: str
    who: str
    amount: int
    limit: int


def peer_charges(
    policy: PolicySection, institution: str, *, samples: int, evaluations: int
) -> tuple[Charge, ...]:
    limit = policy.quotas.get(institution, policy.evaluations_per_day)
    return (
        Charge("evaluations_per_day", institution, evaluations, limit),
        Charge("samples_per_day", institution, samples, policy.samples_per_day),
    )


def client_charges(policy: PolicySection, client: str, evaluations: int) -> tuple[Charge, ...]:
    return (Charge("client_evaluations_per_day", client, evaluations, policy.client_evaluations_per_day),)


@dataclass(slots=True)
class _Account:
    """A day of one quota; `written` is what the disk says."""

    since: float
    spent: int = 0
    written: int = 0


class Quotas:
    """What was charged today; safe to use from any thread. Close it."""

    def __init__(self, store: NodeStore | None, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        rows = [] if store is None else store.read("SELECT quota, who, since, spent FROM quotas")
        self._accounts = {(quota, who): _Account(since, spent, spent) for quota, who, since, spent in rows}

    def charge(self, charges: Sequence[Charge]) -> None:
        self.charge_each([charges])

    def charge_each(self, works: Sequence[Sequence[Charge]]) -> int:
        """Charge pieces of work in order, each whole and durably, with at most one write; return how many fit."""
        with self._lock:
            booked: dict[tuple[str, str], Charge] = {}
            fit = 0
            for charges in works:
                try:
                    sums = [self._added(charge, booked) for charge in charges if charge.limit]
                except QuotaSpent:
                    if not fit:
                        raise
                    break
                booked.update({(charge.quota, charge.who): charge for charge in sums})
                fit += 1
            self._book(list(booked.values()))
        return fit

    def refund(self, charges: Sequence[Charge]) -> None:
        """Take a charge back whose work was never begun; on the disk it stays until more is spent."""
        with self._lock:
            for charge in charges:
                if charge.limit and (account := self._accounts.get((charge.quota, charge.who))):
                    account.spent = max(0, account.spent - charge.amount)

    def require(self, charges: Sequence[Charge]) -> None:
        """Raise unless these amounts would fit now; charge nothing."""
        with self._lock:
            for charge in charges:
                if charge.limit:
                    self._added(charge, {})

    def close(self) -> None:
        """Write the spent amounts exactly; log a failure."""
        with self._lock:
            try:
                self._write([(*key, account.since, account.spent) for key, account in self._accounts.items()])
            except (OSError, DiskFull):
                log.exception("what was used of quotas cannot be written exactly")

    def _added(self, charge: Charge, booked: Mapping[tuple[str, str], Charge]) -> Charge:
        """Add the charge to its account's booked amount; raise QuotaSpent if it exceeds the limit."""
        account, earlier = self._of(charge), booked.get((charge.quota, charge.who))
        before = 0 if earlier is None else earlier.amount
        left = max(0, charge.limit - account.spent - before)
        if charge.amount <= left:
            return charge._replace(amount=before + charge.amount)
        renews = account.since + DAY_S
        when = datetime.fromtimestamp(renews, UTC).isoformat(timespec="seconds")
        demand = f"{charge.who} asks for {charge.amount:,} of {charge.quota}"
        facts: dict[str, str | int] = {
            "quota": charge.quota, "of": charge.who, "limit": charge.limit, "left": left, "asked": charge.amount,
        }  # fmt: skip
        if charge.amount > charge.limit:  # it fits on no day
            raise QuotaSpent(f"{demand}, and {charge.limit:,} is all of a day", facts=facts)
        raise QuotaSpent(
            f"{demand}, and {left:,} of {charge.limit:,} are left until {when}",
            facts={**facts, "renews": when},
            retry_after_s=max(1.0, renews - self._clock()),
        )

    def _of(self, charge: Charge) -> _Account:
        key, now = (charge.quota, charge.who), self._clock()
        account = self._accounts.get(key)
        if account is None or now - account.since >= DAY_S:
            account = self._accounts[key] = _Account(now)
        account.since = min(account.since, now)  # the clock was set back: no day is longer than a day
        return account

    def _book(self, charges: Sequence[Charge]) -> None:
        """Book charges. An account that spent more than is on the disk is written first, a part of its limit ahead."""
        ahead: dict[tuple[str, str], int] = {}
        for charge in charges:
            account = self._of(charge)
            spent = account.spent + charge.amount
            if spent > account.written:
                ahead[charge.quota, charge.who] = spent + charge.limit // AHEAD
        try:
            if ahead:
                self._write([(*key, self._accounts[key].since, written) for key, written in ahead.items()])
        except (OSError, DiskFull) as error:
            log.exception("what was used of quotas cannot be written")
            raise NotReady("the use of quotas cannot be recorded", retry_after_s=RETRY_S) from error
        for charge in charges:
            account = self._of(charge)
            account.spent += charge.amount
            account.written = ahead.get((charge.quota, charge.who), account.written)

    def _write(self, rows: Sequence[tuple[str, str, float, int]]) -> None:
        """Write these accounts, and forget those whose day is over."""
        today = self._clock() - DAY_S
        self._accounts = {key: account for key, account in self._accounts.items() if account.since > today}
        if self._store is None:
            return

        def replace(transaction: Transaction) -> None:
            transaction.execute("DELETE FROM quotas WHERE since <= ?", (today,))
            transaction.executemany("INSERT OR REPLACE INTO quotas VALUES (?, ?, ?, ?)", rows)

        self._store.write(replace).result()

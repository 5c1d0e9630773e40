"""The steps of a node's start, in order: `check` runs all of them, `serve` stops at the first that fails.

A step changes nothing; what a start then does for real (open the jobs, load the model) uses
the same code as the step.
"""

from __future__ import annotations

import errno
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ddib_fed.calibration.signed import CalibrationStore
from ddib_fed.engine.gate import check_key
from ddib_fed.errors import ConfigError, DdibError, ExhaustedError
from ddib_fed.files import check_private_folder
from ddib_fed.node.admin import answers, check_alone, check_socket
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.calibrations import overview, unusable_with
from ddib_fed.node.certificates import certificate_status
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.connections import attainable_files, few_files, most_connections
from ddib_fed.node.model import open_engine
from ddib_fed.node.role import find_roles
from ddib_fed.node.server import check_bindable
from ddib_fed.protocol.addresses import split_address
from ddib_fed.security.pki import root_warning
from ddib_fed.store import rehearse
from ddib_fed.telemetry import open_tracing
from ddib_fed.terminal import as_config_error, explained

# Space that a start itself needs: databases, an audit line, a socket.
MIN_FREE_BYTES: Final = 16 << 20
_HELD: Final = ", in use while this node runs"


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step of a start: what there is with warnings, or a problem."""

    step: str
    text: str = ""
    warnings: tuple[str, ...] = ()
    problem: DdibError | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None


def check(config: NodeConfig) -> list[StepResult]:
    """Run every step of a start, also after failures; what this node itself holds while it runs is none."""
    findings = []
    for name in STEPS:
        try:
            findings.append(_take(name, config))
        except Exception as error:  # noqa: BLE001 - a step that breaks must not hide what the others find
            findings.append(StepResult(name, problem=explained(error)))
    return findings


def begin(config: NodeConfig) -> tuple[str, ...]:
    """Run the checks that precede a start; returns the warnings, for the log."""
    check_alone(config.paths.admin_socket)
    found = [_take(name, config) for name in STEPS if name not in _FOR_REAL]
    return tuple(warning for each in found for warning in each.warnings)


def _take(name: str, config: NodeConfig) -> StepResult:
    try:
        text, *warnings = STEPS[name](config)
    except OSError as error:
        raise as_config_error(error, name) from error
    return StepResult(name, text, tuple(warnings))


# Each step yields what there is, then its warnings.


def _state(config: NodeConfig) -> Iterator[str]:
    paths = config.paths
    for folder in (paths.state, paths.pki):
        check_private_folder(folder)
    there = next(place for place in (paths.state, *paths.state.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        raise ExhaustedError(
            f"the disk of {paths.state} has {free >> 10} KiB left; a start needs {MIN_FREE_BYTES >> 20} MiB",
            hint=f"df -h {shlex.quote(str(there))}",
        )
    yield str(paths.state)
    for place in (config.folder, config.path):
        if place.exists() and place.stat().st_mode & 0o002:
            yield f"everybody may write {place}: chmod o-w {shlex.quote(str(place))}"


def _files(config: NodeConfig) -> Iterator[str]:  # noqa: ARG001 - a step's signature
    limit = attainable_files()
    yield f"{limit} may be open, {most_connections(limit)} of them connections"
    yield from few_files(limit)


def _peers(config: NodeConfig) -> Iterator[str]:
    found, proxy = peer_store(config).list(), config.proxy
    peers = ", ".join(f"{peer.institution} at {peer.address}" for peer in found)
    through = f", through the proxy {proxy.address}" if proxy is not None else ""
    yield (peers or "none admitted yet: ddib peer add") + through
    for peer in found:
        until = max(root.not_valid_after_utc for root in peer.roots)
        if warning := root_warning(peer.institution, until, datetime.now(UTC)):
            yield warning


def _calibrations(config: NodeConfig) -> Iterator[str]:
    store = CalibrationStore(config.paths.calibrations)
    found = overview(config, store, peer_store(config))
    states = [each.state for each in found]
    yield ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"
    for each in found:
        if each.warning:
            yield f"{each.sha256[:12]} ({each.source} to {each.target}): {each.warning}"
    for problem in store.problems():
        yield f"not read: {problem}"


def _store(config: NodeConfig) -> Iterator[str]:
    if answers(config.paths.admin_socket):
        yield f"{config.paths.store}{_HELD}"
    else:
        jobs, lines = rehearse(config.paths.store)
        yield f"{config.paths.store}: {jobs} jobs, {lines} lines of the audit log"


def _roles(config: NodeConfig) -> Iterator[str]:
    if answers(config.paths.admin_socket):
        yield f"{', '.join(config.node.roles)}{_HELD}"
    else:
        yield ", ".join(f"{role.name} ({role.check(config)})" for role in find_roles(config.node.roles))


def _bindable(config: NodeConfig, listen: str, setting: str) -> str:
    """The address, if it is free; if it is in use while this node runs, that it is held."""
    try:
        check_bindable(listen, setting)
    except ConfigError as error:
        busy = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
        if not (busy and answers(config.paths.admin_socket)):
            raise
        return f"{listen}{_HELD}"
    return listen


def _listen(config: NodeConfig) -> Iterator[str]:
    yield _bindable(config, config.node.listen, "node.listen")
    if config.not_dialled:
        yield config.not_dialled


def _operator(config: NodeConfig) -> Iterator[str]:
    socket = config.paths.admin_socket
    check_socket(socket)
    yield f"{socket}{_HELD if answers(socket) else ''}"


def _http(config: NodeConfig) -> Iterator[str]:
    if config.http.listen is None:
        yield "off"
        return
    yield _bindable(config, config.http.listen, "http.listen")
    port = split_address(config.http.listen, bound=True)[1]
    if port and port == split_address(config.node.listen, bound=True)[1]:
        hint = "choose another port for http.listen"
        raise ConfigError(f"http.listen and node.listen are both port {port}", hint=hint)


def _telemetry(config: NodeConfig) -> Iterator[str]:
    if config.telemetry.endpoint is None:
        yield "off"
        return
    open_tracing(config.telemetry, institution=config.node.institution, what="check").close()
    shared = ", ".join(config.telemetry.peers)
    yield f"to {config.telemetry.endpoint}" + (f", traces shared with {shared}" if shared else "")


def _model(config: NodeConfig) -> Iterator[str]:
    engine = open_engine(config, trial=True)
    engine.close()
    model, manifest = engine.model, engine.model.manifest
    if manifest.sample_kind == "picture":
        check_key(config.paths.softening_key)
    shape = "x".join(map(str, manifest.sample_shape))
    guided = "" if model.classifier is None else f", guided by {model.classifier.digest[:12]}"
    what = f"{manifest.sample_kind} {shape}, {model.bundle.digest[:12]}, {model.device}{guided}"
    yield f"{config.model.domain}: {what}"
    if "source" in config.node.roles:
        yield from unusable_with(config, CalibrationStore(config.paths.calibrations), manifest)


STEPS: Final[dict[str, Callable[[NodeConfig], Iterable[str]]]] = {
    "state": _state,
    "identity": certificate_status,
    "peers": _peers,
    "calibrations": _calibrations,
    "store": _store,
    "listen": _listen,
    "operator": _operator,
    "http": _http,
    "telemetry": _telemetry,
    "files": _files,
    "roles": _roles,
    "model": _model,
}
_FOR_REAL: Final = frozenset({"store", "roles", "model"})
"""Steps that a start does for real afterwards."""

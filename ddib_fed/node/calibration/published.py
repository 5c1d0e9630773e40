"""The aggregate that a target's operator has published: noised once, kept, and served unchanged.

A second draw of the noise over the same pictures costs privacy again, so one that exists is not made anew unless the
operator asks for it. The audit log has every publication and every peer that got it; `publications` counts them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddib_fed.errors import (
    AggregateNotFound,
    AlreadyExists,
    CalibrationUnits,
    ConfigError,
    DdibError,
    InputError,
)
from ddib_fed.files import private_folder, read_small, write_file
from ddib_fed.trust.audit.lines import parsed
from ddib_fed.trust.identity import Identity

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.aggregates import Aggregate
    from ddib_fed.node.config import NodeConfig

PUBLISH = "ddib calibrate publish --config node.toml, on the target's node"


@dataclass(frozen=True, slots=True)
class Publication:
    """One aggregate that was published here, as the audit log has it, and the institutions that got it."""

    sha256: str
    time: str
    counted: int
    unit: str
    epsilon: float
    delta: float
    peers: tuple[str, ...]


def publications(config: NodeConfig) -> tuple[Publication, ...]:
    """Every aggregate that this node has published, the oldest first, by its audit log."""
    path = config.paths.audit
    published: dict[str, dict[str, Any]] = {}
    peers: dict[str, dict[str, None]] = {}
    try:
        with path.open("rb") as file:
            # Most lines of a log are of latents; only these are parsed.
            for record in (parsed(line) or {} for line in file if b'"aggregate_' in line):
                if record.get("act") == "aggregate_published":
                    names = ("time", "counted", "unit", "epsilon", "delta")
                    published[record["aggregate"]] = {name: record[name] for name in names}
                elif record.get("act") == "aggregate_served":
                    institution = Identity.parse(record["peer"]).institution
                    peers.setdefault(record["aggregate"], {})[institution] = None
    except FileNotFoundError:
        return ()
    except (KeyError, TypeError, DdibError) as error:
        raise ConfigError(
            f"{path} has a line on an aggregate that cannot be read, so what was published cannot be counted",
            hint=f"ddib audit verify --config {shlex.quote(str(config.path))}",
        ) from error
    return tuple(
        Publication(sha256=sha256, peers=tuple(peers.get(sha256, ())), **values)
        for sha256, values in published.items()
    )


def spent(published: Sequence[Publication | Aggregate]) -> str:
    """The privacy of all of them together, for one that is in each: epsilons and deltas add up, whoever
    compares them.
    """
    epsilon, delta = sum(each.epsilon for each in published), sum(each.delta for each in published)
    unit = "group" if all(each.unit == "group" for each in published) else "picture"
    whose = f" that is in all {len(published)}" if len(published) > 1 else ""
    return f"epsilon {epsilon:g}, delta {delta:g} for each {unit}{whose}"


def find_published(config: NodeConfig) -> Aggregate | None:
    """What is published; None if nothing is."""
    from ddib_fed.bridge.calibration.aggregates import read_aggregate

    path = config.paths.aggregate
    if not path.exists():
        return None
    try:
        return read_aggregate(read_small(path))
    except InputError as error:
        raise AggregateNotFound(f"{path} is damaged: {error.detail}", hint=f"{PUBLISH} --again") from error


def served_aggregate(config: NodeConfig, units_sha256: str) -> Aggregate:
    """What is published, if it is of the model that the node serves."""
    found = find_published(config)
    if found is None:
        raise AggregateNotFound(f"no aggregate of {config.model.domain} is published here", hint=PUBLISH)
    if found.units_sha256 != units_sha256 or found.domain != config.model.domain:
        raise CalibrationUnits(
            f"the aggregate in {config.paths.aggregate} is of {found.domain} in the units {found.units_sha256[:12]}; "
            f"the model of {config.model.domain} has {units_sha256[:12]}",
            hint=f"{PUBLISH} --again",
            facts={"side": "target"},
        )
    return found


def keep_published(config: NodeConfig, aggregate: Aggregate, *, again: bool = False) -> None:
    """Store an aggregate for serving; durable when this returns."""
    path = config.paths.aggregate
    if path.exists() and not again:
        raise AlreadyExists(
            f"an aggregate is published already ({path}); another draw of the noise costs epsilon again",
            hint="keep it, or add --again, e.g. after the pictures or the model have changed",
        )
    private_folder(path.parent)
    write_file(path, aggregate.canonical, private=True)

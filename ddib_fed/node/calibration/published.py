"""The aggregate that a target's operator has published: noised once, kept, and served unchanged.

A second draw of the noise over the same pictures would cost privacy again, so one that exists is not made anew unless
the operator asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddib_fed.errors import AggregateNotFound, AlreadyExists, CalibrationUnits, InputError
from ddib_fed.files import private_folder, read_small, write_file

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.aggregates import Aggregate
    from ddib_fed.node.config import NodeConfig

PUBLISH = "ddib calibrate publish --config node.toml, on the target's node"


def find_published(config: NodeConfig) -> Aggregate | None:
    """What is published; None if nothing is.

    Raises:
        AggregateNotFound: The file is damaged.
    """
    from ddib_fed.bridge.calibration.aggregates import read_aggregate

    path = config.paths.aggregate
    if not path.exists():
        return None
    try:
        return read_aggregate(read_small(path))
    except InputError as error:
        raise AggregateNotFound(f"{path} is damaged: {error.detail}", hint=f"{PUBLISH} --again") from error


def served_aggregate(config: NodeConfig, units_sha256: str) -> Aggregate:
    """What is published, if it is of the model that the node serves.

    Raises:
        AggregateNotFound: Nothing is published, or the file is damaged.
        CalibrationUnits: It is in the units of a model that was replaced since.
    """
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
    """Store an aggregate for serving; durable when this returns.

    Args:
        config: Of the node.
        aggregate: What peers will be given.
        again: Replace the one that is there.

    Raises:
        AlreadyExists: There is one, and `again` is false.
    """
    path = config.paths.aggregate
    if path.exists() and not again:
        raise AlreadyExists(
            f"an aggregate is published already ({path}); another draw of the noise costs epsilon again",
            hint="keep it, or add --again, e.g. after the pictures or the model have changed",
        )
    private_folder(path.parent)
    write_file(path, aggregate.canonical, private=True)

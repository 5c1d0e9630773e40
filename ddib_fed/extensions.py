"""Extensions: what distributions declare as entry points of the groups `ddib_fed.*`, found by name, loaded when used.

No third party's takes the name of one of this package. One that cannot be imported is an error of its own, which names
its distribution; the others are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ddib_fed.errors import ConfigError, DdibError, ItemNotFound

OWN = "ddib-fed"


@cache
def extensions(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group, such as `ddib_fed.importers`, by name, third parties' first."""
    points = sorted(entry_points(group=group), key=lambda point: _distribution(point) != OWN)
    by_name = {point.name: point for point in reversed(points)}
    return dict(sorted(by_name.items(), key=lambda item: (_distribution(item[1]) == OWN, item[0])))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


def extension(group: str, name: str) -> Any:
    """Load an extension; raise ItemNotFound if none is installed, ConfigError if it cannot be imported."""
    point = extensions(group).get(name)
    if point is None:
        hint = f"there are {', '.join(extensions(group)) or 'none: install the package again'}"
        raise ItemNotFound(f"no installed package brings {name[:40]!r} to {group}", hint=hint)
    try:
        return point.load()
    except DdibError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{_distribution(point)}: its {name!r} of {group} cannot be loaded: {error}",
            hint=f"install another version of {_distribution(point)}, or remove it",
        ) from error


@cache
def loaded(group: str, kind: type = object) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Load all extensions of a group once, objects of a class; return them by name, and what is wrong with others.

    Raise ConfigError if one of this package's own cannot be loaded.
    """
    objects, broken = dict[str, Any](), list[str]()
    for name, point in extensions(group).items():
        try:
            value = extension(group, name)
        except ConfigError as error:
            if _distribution(point) == OWN:
                raise
            broken.append(error.detail)
            continue
        if isinstance(value, kind):
            objects[name] = value
        else:
            broken.append(f"{_distribution(point)}: its {name!r} of {group} is no {kind.__name__}")
    return objects, tuple(broken)

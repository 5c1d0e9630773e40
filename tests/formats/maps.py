"""GeoTIFFs by rasterio, with a person's name in a tag; tests of them ignore what rasterio says of affine's future."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

OWNER = "Ada Lovelace"
WHERE = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000)}


def write_map(
    path: Path, values: np.ndarray, *, mask: np.ndarray | None = None, owner: str = OWNER, **profile
) -> Path:
    """A GeoTIFF of (bands, H, W)."""
    settings = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
                "dtype": values.dtype.name, **WHERE, **profile}  # fmt: skip
    with rasterio.open(path, "w", **settings) as file:
        file.write(values)
        file.update_tags(OWNER=owner)
        if mask is not None:
            file.write_mask(mask)
    return path

"""Folders of small pictures, and the records that translations have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ddib_fed.reports.sheets import to_pixels
from ddib_fed.samples.images import encode_png


def blocks(count: int, *, channels: int = 1, size: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-1, 1, (count, channels, size // 4, size // 4))
    return np.kron(coarse, np.ones((1, 1, 4, 4))).astype(np.float32)


def write(
    folder: Path, pictures: np.ndarray, *, names: list[str] | None = None, suffix: str = ".png"
) -> Path:
    """Pictures as p00.png, p01.png, ... or under other names."""
    for number, pixels in enumerate(to_pixels(pictures)):
        path = folder / f"{names[number] if names else f'p{number:02}'}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(pixels))
    return folder


def record(folder: Path, name: str, **fields: object) -> None:
    """A record as `ddib bridge` writes it."""
    known = {
        "source": f"{name}.png",
        "translated": f"{name}.png",
        "back": None,
        "files": {f"{name}.png": "digest"},
        "cycle_mse": 0.0004,
        "cycle_psnr": 40.0,
        "structure": {"edge_correlation": 0.8, "mutual_information": 1.5, "doubtful": False},
        "latent": {"mean": 0.0, "std": 1.0, "kurtosis": 0.1, "correlation": 0.1},
        "output_scale": {"slope": 1.0, "intercept": 0.0},
    }
    (folder / f"{name}.json").write_text(json.dumps(known | fields))

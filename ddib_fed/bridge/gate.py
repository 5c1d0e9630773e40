"""The latent gate: a latent that is no noise neither leaves a party nor is decoded by one."""

from __future__ import annotations

from torch import Tensor

from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics


def pass_latent(latent: Tensor, depth: float) -> LatentStatistics:
    """Statistics of one item's latent, refused when it is not one that an encoder makes.

    Args:
        latent: (N, D) of a set of points, or (N, C, H, W) of pictures, finite.
        depth: Fraction of the way to noise that it has gone; below 1 no latent is noise, and none is refused.

    Raises:
        LatentNotGaussian: See `gaussianity.examine`.
    """
    return gaussianity.examine(latent) if depth == 1.0 else gaussianity.measure(latent)

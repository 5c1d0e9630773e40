"""The latent gate: a latent that is no noise neither leaves a party nor is decoded by one.

What is judged is what is sent: numbers of the leg's latent type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddib_fed.bridge.party import Leg
from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.latent_types import FLOAT32


def rounded(latent: Tensor, leg: Leg) -> Tensor:
    """A latent in the numbers that the leg's latent type has, to nearest, ties to even; float32 as it is.

    Args:
        latent: Float32, of any shape.
        leg: On which it was made.
    """
    if leg.latent_type == FLOAT32:
        return latent
    narrow: torch.dtype = getattr(torch, leg.latent_type)
    return latent.to(narrow).to(torch.float32)


def pass_latent(latent: Tensor, leg: Leg) -> LatentStatistics:
    """Statistics of one item's latent, refused when it is not one that an encoder makes.

    Those of an encoder that is linear, at least in part, have wider bounds.
    Latents of less than the whole depth are not noise, and none is refused. Nor is one on a leg that the wire cannot
    carry (guided encoding, noise in decoding, the public code's respacings): it never reaches a node (decision 0055).

    Args:
        latent: (N, D) of a set of points, or (N, C, H, W) of pictures, finite.
        leg: On which it was made, or is decoded.

    Raises:
        LatentNotGaussian: See `gaussianity.examine`.
    """
    between_nodes = not (leg.guidance.encoding or leg.settings.in_one_process)
    if between_nodes and leg.settings.depth == 1.0:
        return gaussianity.examine(latent, structured=leg.settings.encoder != "ode")
    return gaussianity.measure(latent)

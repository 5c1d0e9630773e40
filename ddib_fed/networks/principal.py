"""First weights of an autoencoder: it begins as the best linear one of its pictures, and learns what that leaves.

By halvings of the sides the k channels of 2^d neighbours become their principal components, as many as a layer has
channels. The latent is what these know of fixed features, in a fixed order: the means of the channels, then their first
cosine along each axis; each divided by its deviation. So latents of two institutions begin with one meaning.

    h' = V^T fold(h) / 2^(d/2),    h = unfold(V h') 2^(d/2),    V orthonormal

Residual branches begin at 0. The normalisation before a last layer would take brightness and contrast away: a constant
channel far beyond the others makes it nearly a fixed factor.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

CONSTANT = 30.0
"""In deviations of the pictures: its square is some hundred times the variance of all channels."""
LOG_VARIANCE = -6.0  # of a latent about its mean, whose own variance is 1
_BLOCKS = {"Convolution", "AEKLResBlock", "AEKLDownsample", "UpSample", "GroupNorm"}


@torch.no_grad()
def begin_linear(network: Any, pictures: Tensor) -> bool:
    """Give MONAI's AutoencoderKL these weights, from normalised pictures (N, C, *sides); False where it cannot have
    them, as it attends, normalises by groups of channels, or enlarges without transposed convolutions.
    """
    encoder, decoder = network.encoder.blocks, network.decoder.blocks
    blocks = [*encoder, *decoder]
    known = {type(block).__name__ for block in blocks} <= _BLOCKS
    whole = all(part.num_groups == 1 for part in network.modules() if isinstance(part, nn.GroupNorm))
    enlarges = all(hasattr(block, "deconv") for block in blocks if type(block).__name__ == "UpSample")
    if not (known and whole and enlarges):
        return False
    *inner, _, last = encoder
    halvings, h, constant = [], pictures, torch.empty(0)
    for block in inner:
        if hasattr(block, "pad"):
            v = _components(h)[:, : block.conv.conv.out_channels]
            constant = _resample(block.conv.conv, v, enlarge=False)
            halvings.append(v)
            h = torch.einsum("km,nk...->nm...", v / 2.0 ** ((h.ndim - 2) / 2), _folded(h))
        else:
            constant = _pass_on(block)
            h = h[:, : len(constant)]
    scale, mean = _of_constant(constant)
    q = _features(pictures, h, network.latent_channels)
    z = torch.einsum("kc,nk...->nc...", q, h)
    deviation = z.transpose(0, 1).flatten(1).std(1).clamp_min(1e-3)
    _matrix(last.conv, scale * q.T / deviation[:, None])
    last.conv.bias[: len(deviation)] = mean * q.sum(0) / deviation
    for convolution in (network.quant_conv_mu.conv, network.post_quant_conv.conv):
        _diagonal(convolution, torch.ones(network.latent_channels))
    network.quant_conv_log_sigma.conv.weight.zero_()
    network.quant_conv_log_sigma.conv.bias.fill_(LOG_VARIANCE)
    first, *inner, _, last = decoder
    _matrix(first.conv, q * deviation)
    constant = first.conv.bias
    for block in inner:
        if hasattr(block, "deconv"):
            constant = _resample(block.deconv, halvings.pop(), enlarge=True)
        else:
            constant = _pass_on(block)
    scale, mean = _of_constant(constant)
    _diagonal(last.conv, scale * torch.ones(pictures.shape[1]))
    last.conv.bias.fill_(mean)
    return True


def _folded(h: Tensor) -> Tensor:
    """Stack the channels of 2^d neighbours into one place: (N, k 2^d, *halves)."""
    n, k, *sides = h.shape
    dims = len(sides)
    halves = [side // 2 for side in sides]
    split = h.reshape(n, k, *(number for half in halves for number in (half, 2)))
    inner, outer = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
    return split.permute(0, 1, *inner, *outer).reshape(n, k * 2**dims, *halves)


def _components(h: Tensor) -> Tensor:
    """Principal components of neighbours, in columns; about 0, which is the mean of normalised pictures."""
    rows = _folded(h).transpose(0, 1).flatten(1).double()
    vectors: Tensor = torch.linalg.eigh(rows @ rows.T / rows.shape[1])[1]  # the smallest first
    return vectors.flip(1).float()


def _resample(convolution: Any, v: Tensor, *, enlarge: bool) -> Tensor:
    """Set a convolution to project 2^d neighbours on components `v`, or to `enlarge` from them; return its bias."""
    weight, (inputs, outputs) = convolution.weight, v.shape
    dims = weight.ndim - 2
    k = inputs // 2**dims
    scaled = v.T * 2 ** (dims / 2) if enlarge else v.T / 2 ** (dims / 2)
    weight.zero_()
    weight[(slice(outputs), slice(k), *[slice(2)] * dims)] = scaled.reshape(outputs, k, *[2] * dims)
    bias: Tensor = convolution.bias.zero_()
    return bias


def _pass_on(block: Any) -> Tensor:
    """The last bias of a convolution, or of a residual block, that now gives what it is given."""
    if not hasattr(block, "conv2"):
        _diagonal(block.conv, torch.ones(min(block.conv.weight.shape[:2])))
        return cast("Tensor", block.conv.bias)
    if hasattr(block.nin_shortcut, "conv"):
        _pass_on(block.nin_shortcut)
    block.conv2.conv.weight.zero_()
    return cast("Tensor", block.conv2.conv.bias.zero_())


def _features(pictures: Tensor, h: Tensor, count: int) -> Tensor:
    """Directions (K, count), orthonormal, among components h (N, K, *sides), each nearest to a feature of its place."""
    axes = tuple(range(2, h.ndim))
    side = pictures.shape[2] // h.shape[2]
    parts = pictures
    for axis in axes:
        parts = parts.unfold(axis, side, side)
    features = list(parts.flatten(h.ndim).mean(-1).unbind(1))
    wave = torch.cos((torch.arange(side) + 0.5) * math.pi / side)
    for channel in range(pictures.shape[1]):
        for axis in reversed(range(len(axes))):
            shape = [side if other == axis else 1 for other in range(len(axes))]
            features.append((parts[:, channel] * wave.reshape(shape)).flatten(h.ndim - 1).mean(-1))
    rows = h.transpose(0, 1).flatten(1).double()
    wanted = torch.stack(features[:count]).flatten(1).double()
    solution = torch.linalg.lstsq(rows.T, wanted.T).solution
    q, r = torch.linalg.qr(solution)
    q = q * torch.sign(r.diagonal())
    # Where there are fewer features than latents, the components of the rest follow.
    rest = torch.eye(len(rows), dtype=rows.dtype) - q @ q.T
    further = torch.linalg.eigh(rest @ (rows @ rows.T) @ rest)[1].flip(1)
    return torch.cat([q, further], dim=1)[:, :count].float()


def _matrix(convolution: Any, values: Tensor) -> None:
    """The first channels become a matrix (outputs, inputs) of the first ones; the others 0."""
    convolution.weight.zero_()
    convolution.bias.zero_()
    middle = [side // 2 for side in convolution.weight.shape[2:]]
    outputs, inputs = values.shape
    convolution.weight[(slice(outputs), slice(inputs), *middle)] = values


def _diagonal(convolution: Any, values: Tensor) -> None:
    _matrix(convolution, torch.diag(values))


def _of_constant(bias: Tensor) -> tuple[float, float]:
    """Deviation and mean over all channels, once the last is the constant."""
    bias[-1] = CONSTANT
    share = 1.0 / len(bias)
    return CONSTANT * math.sqrt(share * (1.0 - share)), CONSTANT * share

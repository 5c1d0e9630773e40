"""A stand-in for a CUDA graph: the operations of one call on the buffers, recorded and replayed without its Python."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx


def recorded(network, buffers):
    """As `graphs.Capturing`, on any device: the answer lies where the last replay wrote it."""
    with torch.no_grad():
        steps = make_fx(lambda: network(buffers.x, buffers.times, **buffers.extra))()
        answer = steps().clone()

    def replay():
        with torch.no_grad():
            return answer.copy_(steps())

    return replay

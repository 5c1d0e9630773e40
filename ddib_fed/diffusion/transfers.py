"""Moves tensors between the host and a device without waiting for the device.

A copy from pageable memory makes the host wait until the device has caught up, once for each copy. So what goes to a
device is first laid in pinned memory, and what comes back is copied on a stream of its own beside the next step.
Without a device both are what they always were.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device` in `dtype`; from the host to a GPU by way of pinned memory, without waiting.

    The host may reuse nothing of it earlier than the copy is done: the allocator of pinned memory sees to that.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.to(dtype or tensor.dtype).pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype or tensor.dtype)


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy `tensor` to the host; what is returned waits for that copy alone, and gives it.

    The copy takes the values that work queued so far leaves in `tensor`, beside whatever is queued later.
    """
    if tensor.device.type != "cuda":
        host = tensor.cpu()
        return lambda: host
    stream = _copies(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        staged.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(stream)
    tensor.record_stream(stream)  # its memory is not given to another tensor before the copy is done

    def arrived() -> Tensor:
        done.synchronize()
        return staged

    return arrived


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _copies(device: torch.device) -> torch.cuda.Stream:
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device]

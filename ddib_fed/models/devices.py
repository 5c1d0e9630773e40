"""Checks whether a network can run on a named device, on this machine and with this version of torch."""

from __future__ import annotations

from typing import Final

import torch

KINDS: Final = ("cpu", "cuda", "mps")


def device_problem(name: str) -> str | None:
    """Why there is no such device here; None if there is."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return f"a device is {', '.join(KINDS)} or cuda:N"
    if device.type not in KINDS:
        return f"networks run on {', '.join(KINDS)} or cuda:N"
    if device.type == "mps":
        return None if torch.backends.mps.is_available() else "torch finds no Metal GPU here"
    count = torch.cuda.device_count()
    if device.type == "cuda" and not count:
        return "torch finds no CUDA GPU here (see nvidia-smi, and whether this torch was built with CUDA)"
    if device.type == "cuda" and (device.index or 0) >= count:
        return f"torch sees {count} GPUs here, counted from 0"
    return None

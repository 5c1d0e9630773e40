"""Softening noise from a secret of the node: repeatable here, unknown elsewhere.

seed = HMAC-SHA256(secret; purpose, what, peer, model),   n = Box-Muller of the numbers of SHAKE-256(seed)
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ConfigError, FileMissing
from ddib_fed.files import read_private, write_file

KEY_BYTES = 32


def load_key(path: Path) -> bytes:
    """The node's softening key; made, of mode 0600, when there is none."""
    try:
        key = read_private(path)
    except FileMissing:
        key = secrets.token_bytes(KEY_BYTES)
        write_file(path, key, private=True, overwrite=False)
        return key
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path} has {len(key)} bytes, a softening key has {KEY_BYTES}",
            hint="put it back from the backup; without one remove it: pictures get other latents than before",
        )
    return key


def check_key(path: Path) -> None:
    if os.path.lexists(path):
        load_key(path)


class Softener:
    def __init__(self, key: bytes, model: str) -> None:
        self._key = key
        self._model = bytes.fromhex(model)

    def for_picture(self, picture: NDArray[np.float32], peer: str) -> NDArray[np.float32]:
        digest = hashlib.sha256(np.ascontiguousarray(picture, dtype="<f4").data).digest()
        return self._noise(picture.shape, b"picture", digest, peer.encode())

    def _noise(self, shape: Sequence[int], *what: bytes) -> NDArray[np.float32]:
        parts = (b"ddib-fed softening 1", *what, self._model)
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return standard_normal(hmac.digest(self._key, message, "sha256"), shape)


def standard_normal(seed: bytes, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal numbers that follow from a seed (Box and Muller, 1958)."""
    count = math.prod(shape)
    pairs = -(-count // 2)
    raw = np.frombuffer(hashlib.shake_256(seed).digest(16 * pairs), dtype="<u8")
    # 53 bits make a float64 in (0, 1]: the logarithm of 0 never comes up.
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * np.pi * uniform[pairs:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return normal.reshape(tuple(shape)).astype(np.float32)

"""A private run's key: all that is random in its steps follows from it, and not from the seed, which the bundle names.

Whoever knew which samples take part in a step, or its noise, could subtract the noise from the weights. So both are
cut from the stream of ChaCha20 under a key of the run alone. It lies in the run's folder, so that a run that was killed
takes the same steps again and spends nothing twice, and is removed once the bundle is there.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from ddib_fed.datasets.synthetic import normals
from ddib_fed.errors import StateConflict
from ddib_fed.files import write_file

KEY_FILE = "noise.key"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class RunKey:
    """The key of a run."""

    secret: bytes = field(repr=False)

    def uniforms(self, purpose: str, step: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Uniform numbers in [0, 1), a function of key, purpose and step; a longer stream begins as a shorter one."""
        name = hashlib.sha256(self.secret + f"{purpose} {step}".encode()).digest()
        stream = Cipher(ChaCha20(name, bytes(16)), mode=None).encryptor().update(bytes(8 * math.prod(shape)))
        bits = np.frombuffer(stream, np.uint64) >> np.uint64(11)
        return (bits.astype(np.float64) * 2.0**-53).reshape(shape)

    def normals(self, purpose: str, step: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Standard normal numbers, likewise."""
        count = math.prod(shape)
        pairs = normals(self.uniforms(purpose, step, ((count + 1) // 2, 2)))
        return pairs.reshape(-1)[:count].reshape(shape)

    def chosen(self, step: int, total: int, rate: float) -> NDArray[np.int64]:
        return np.flatnonzero(self.uniforms("chosen", step, (total,)) < rate)


def key_of_run(folder: Path, *, begun: bool) -> RunKey:
    """The key of the run in `folder`; a new one where there is none."""
    path = folder / KEY_FILE
    if path.exists():
        secret = path.read_bytes()
        if len(secret) == KEY_BYTES:
            return RunKey(secret)
    if begun:
        raise StateConflict(
            f"{path} is missing or damaged: steps that were taken since the last checkpoint would be taken with "
            "other noise, and spend twice",
            hint="--force starts the run again",
        )
    key = RunKey(secrets.token_bytes(KEY_BYTES))
    write_file(path, key.secret, private=True)
    return key


def forget_key(folder: Path) -> None:
    (folder / KEY_FILE).unlink(missing_ok=True)

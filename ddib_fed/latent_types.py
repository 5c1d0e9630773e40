"""The types of numbers in which latents cross between nodes; `latent` converts them. Imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

FLOAT32: Final = "float32"
LATENT_TYPES: Final[Mapping[str, int]] = MappingProxyType({FLOAT32: 4, "float16": 2, "bfloat16": 2})
"""The types, each with the bytes of one number."""

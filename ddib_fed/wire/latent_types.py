"""Latent types by their numbers on the wire; imports no numpy, so that the client starts without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ddib_fed.v1 import common_pb2

TYPE_NUMBERS: Final[Mapping[str, common_pb2.DataType]] = MappingProxyType(
    {
        "float32": common_pb2.DATA_TYPE_FLOAT32,
        "float16": common_pb2.DATA_TYPE_FLOAT16,
        "bfloat16": common_pb2.DATA_TYPE_BFLOAT16,
    }
)
"""The number of each latent type on the wire."""
_NAMES: Final[Mapping[int, str]] = MappingProxyType({number: name for name, number in TYPE_NUMBERS.items()})


def types_from_pb(numbers: Iterable[int]) -> tuple[str, ...]:
    """The latent types of some numbers, in their order; those of a later release are left out."""
    return tuple(_NAMES[number] for number in numbers if number in _NAMES)

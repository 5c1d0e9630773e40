"""docs/protocol.md says what the code does; its example of a contract is checked beside docs/cli.md."""

from __future__ import annotations

import re
from pathlib import Path

from ddib_fed.protocol.streams import MAX_CHUNK, MIN_CHUNK
from ddib_fed.v1.decoding_pb2 import ContractSide

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_every_field_of_a_side_is_explained() -> None:
    """In the table of the contract."""
    chapter = PAGE.partition("## The contract\n")[2].partition("\nlambda = ")[0]
    assert set(re.findall(r"^\| `([a-z_0-9]+)` \|", chapter, re.MULTILINE)) == set(
        ContractSide.DESCRIPTOR.fields_by_name
    )


def test_the_sizes_of_pieces_are_those_of_the_code() -> None:
    """Of a receiver, and of this release."""
    assert f"at most {MAX_CHUNK >> 20} MiB, and each but the last at least {MIN_CHUNK >> 10} KiB" in PAGE

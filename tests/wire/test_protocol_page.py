"""docs/protocol.md says what the code does."""

import re
from pathlib import Path

import pytest

from ddib_fed.errors import (
    ConfigError,
    DdibError,
    ExtraMissing,
    FileMissing,
    MemoryExhausted,
    OutOfBounds,
    UsageError,
    all_errors,
)
from ddib_fed.wire.contracts.contract import PROTOCOL, ContractSide
from ddib_fed.wire.streams import CHUNK, MAX_CHUNK, MIN_CHUNK
from tests.wire.examples import TERMS, contract

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
LOCAL = {UsageError, ConfigError, ExtraMissing, FileMissing, MemoryExhausted, OutOfBounds, DdibError}
ROWS = {
    reason: status
    for reasons, status in re.findall(r"^\| (`[A-Z_`, ]+`) \| ([A-Z_]+) \|", PAGE, re.MULTILINE)
    for reason in re.findall(r"[A-Z_]+", reasons)
}


@pytest.mark.parametrize("error", [error for error in all_errors() if error not in LOCAL])
def test_every_reason_that_can_cross_is_in_the_table(error):
    """With its gRPC status."""
    assert ROWS[error.reason] == error.status


def test_no_reason_is_in_the_table_that_nobody_gives():
    """Nor one that stays on the machine."""
    assert set(ROWS) == {error.reason for error in all_errors() if error not in LOCAL}


def test_the_example_contract_and_its_digest_are_those_of_the_code():
    """The text between the fences, byte for byte."""
    (example,) = re.findall(r"```json\n(.*)\n```", PAGE)
    made = contract()
    assert example.encode() == made.canonical()
    assert f"`{made.digest.hex()}`" in PAGE


def test_the_example_of_a_calibration_is_that_of_the_code():
    """The first field of the canonical JSON."""
    made = contract(sample_kind="picture", calibration=TERMS)
    field, _, _ = made.canonical().decode().partition('"limits"')
    assert f'{field}"limits":...' in PAGE


def test_every_field_of_a_side_is_explained():
    """In the table of the contract."""
    chapter = PAGE.partition("## The contract\n")[2].partition("\n### ")[0]
    explained = set(re.findall(r"^\| `([a-z_0-9]+)` \|", chapter, re.MULTILINE))
    assert explained == set(ContractSide.__slots__)


def test_the_limits_are_those_of_the_code():
    """Of the version and of chunks."""
    assert f"**{PROTOCOL}**" in PAGE
    assert f"1 byte to {MAX_CHUNK >> 20} MiB" in PAGE
    assert f"{MIN_CHUNK >> 10} KiB. This release sends {CHUNK >> 20} MiB" in PAGE

"""What can cross is a committed list."""

from __future__ import annotations

import difflib

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from ddib_fed.v1 import common_pb2
from tests.conftest import Evidence
from tests.protocol.surface import GOLDEN, lines_of, surface

pytestmark = pytest.mark.promise("latents")


def test_every_field_with_its_type_and_bound_is_the_one_that_was_reviewed(evidence: Evidence) -> None:
    """A field, call or bound that is added, removed or changed fails, until tests/data/surface.txt is written again."""
    then, now = GOLDEN.read_text(encoding="utf-8").splitlines(), surface().splitlines()
    evidence.cases(len(now))
    changes = [line for line in difflib.unified_diff(then, now, lineterm="", n=0) if line[:1] in "+-"]
    assert not changes, "\n".join(["python -m tests.protocol.surface after a review of:", *changes])


@pytest.mark.parametrize("added", ["memo", "data2"])
def test_a_field_that_is_added_unseen_fails(added: str) -> None:
    """The same comparison, over a common.proto to which a field of bytes was added."""
    file = descriptor_pb2.FileDescriptorProto(name="added.proto", package="ddib_fed.v1", syntax="proto3")
    chunk = file.message_type.add()
    common_pb2.Chunk.DESCRIPTOR.CopyToProto(chunk)
    chunk.field.add(name=added, number=9, type="TYPE_BYTES", label="LABEL_OPTIONAL")
    for field in chunk.field:
        field.ClearField("options")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    lines = list(lines_of(pool.FindFileByName(file.name)))
    assert f"Chunk.{added} = 9: bytes, 32 to 32 bytes" in set(lines) - set(
        GOLDEN.read_text(encoding="utf-8").splitlines()
    )

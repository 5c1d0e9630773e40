"""What can cross is a committed list."""

from __future__ import annotations

import difflib
import importlib

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from ddib_fed.v1 import common_pb2
from ddib_fed.wire.limits.kinds import Anything
from ddib_fed.wire.limits.table import FIELDS
from tests.conftest import Evidence
from tests.wire.limits import surface
from tests.wire.limits.surface import GOLDEN

pytestmark = pytest.mark.promise("latents")


def test_every_field_with_its_type_and_bound_is_the_one_that_was_reviewed(evidence: Evidence) -> None:
    """A field, call or bound that is added, removed or changed fails, until tests/data/surface.txt is written again."""
    then, now = GOLDEN.read_text(encoding="utf-8").splitlines(), surface.surface().splitlines()
    evidence.cases(len(now))
    changes = [line for line in difflib.unified_diff(then, now, lineterm="", n=0) if line[:1] in "+-"]
    assert not changes, "\n".join(["python -m tests.wire.limits.surface after a review of:", *changes])


@pytest.mark.parametrize("added", ["memo", "data2"])
def test_a_field_that_is_added_unseen_fails(added: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same comparison, over a common.proto to which a field of bytes was added with a limit in the table."""
    file = descriptor_pb2.FileDescriptorProto()
    common_pb2.DESCRIPTOR.CopyToProto(file)
    chunk = next(message for message in file.message_type if message.name == "Chunk")
    chunk.field.add(name=added, number=9, type="TYPE_BYTES", label="LABEL_OPTIONAL")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    limits = {**FIELDS, "Chunk": {**FIELDS["Chunk"], added: Anything()}}
    monkeypatch.setattr(surface, "FIELDS", limits)
    lines = list(surface._file(pool.FindFileByName(common_pb2.DESCRIPTOR.name)))
    known = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line not in known] == [
        f"Chunk.{added} = 9: bytes, every value of the type"
    ]


def test_what_the_table_names_as_a_check_exists() -> None:
    """`Anything("wire.chunks.Joiner")` is an object or a module of this release, not a name of an earlier one."""
    missing = set()
    for limits in FIELDS.values():
        for limit in limits.values():
            if isinstance(limit, Anything) and limit.by and not _found(limit.by):
                missing.add(limit.by)
    assert not missing


def _found(name: str) -> bool:
    prefix = "" if name.startswith(("source_node", "target_node")) else "ddib_fed."
    try:
        importlib.import_module(prefix + name)
    except ModuleNotFoundError:
        module, _, attribute = (prefix + name).rpartition(".")
        try:
            return hasattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError:
            return False
    return True

"""What can cross is a committed list."""

import difflib

import pytest

from tests.conftest import Evidence
from tests.protocol.surface import GOLDEN, surface

pytestmark = pytest.mark.promise("latents")


def test_every_field_with_its_type_and_bound_is_the_one_that_was_reviewed(evidence: Evidence) -> None:
    """A field, call or bound that is added, removed or changed fails, until tests/data/surface.txt is written again."""
    then, now = GOLDEN.read_text(encoding="utf-8").splitlines(), surface().splitlines()
    evidence.cases(len(now))
    changes = [line for line in difflib.unified_diff(then, now, lineterm="", n=0) if line[:1] in "+-"]
    assert not changes, "\n".join(["python -m tests.protocol.surface after a review of:", *changes])

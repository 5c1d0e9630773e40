"""A folder with bad files through two real nodes, interrupted and killed: nothing is computed twice."""

import pytest

from benchmarks.folders import BAD, tell

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_same_command_goes_on_after_ctrl_c_and_kill_9(tmp_path) -> None:
    """By the audit logs each file crossed once; no file was seen half-written; only the bad ones are left out."""
    story = tell(tmp_path, 40, most_items=7)
    first, second, third = (run["on_disk"] for run in story["runs"])
    assert [run["code"] for run in story["runs"]] == [12, -9, 15], story
    assert first < second < third == 40 - len(BAD), story
    assert story["jobs"] >= 6, story
    assert story["held"], story

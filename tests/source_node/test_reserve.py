"""Room that is kept for what makes room."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddib_fed.errors import DiskFull
from source_node.spool import NAME, RESERVE_BYTES, Reserve


class Act:
    """Raises these errors, one a call, and then works."""

    def __init__(self, *errors: Exception) -> None:
        self._errors: Iterator[Exception] = iter(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if (error := next(self._errors, None)) is not None:
            raise error
        return self.calls


@pytest.fixture
def reserve(tmp_path: Path) -> Reserve:
    made = Reserve(tmp_path)
    made.keep()
    return made


def size(folder: Path) -> int:
    path = folder / NAME
    return path.stat().st_size if path.exists() else -1


@pytest.mark.parametrize(
    "error", [DiskFull("full"), OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "full")]
)
def test_it_is_given_up_for_what_meets_a_full_disk(
    reserve: Reserve, tmp_path: Path, error: Exception
) -> None:
    """Called again with that room; then it is kept again."""
    sizes: list[int] = []
    act = Act(error)
    assert reserve.making_room(lambda: (sizes.append(size(tmp_path)), act())[1]) == 2
    assert sizes == [RESERVE_BYTES, -1]
    assert size(tmp_path) == RESERVE_BYTES


def test_other_errors_and_a_second_one_are_raised(reserve: Reserve, tmp_path: Path) -> None:
    """A broken disk does not get better by room, nor does a full one by none."""
    act = Act(OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        reserve.making_room(act)
    assert act.calls == 1
    act = Act(DiskFull("full"), DiskFull("still full"))
    with pytest.raises(DiskFull, match="still full"):
        reserve.making_room(act)
    assert size(tmp_path) == RESERVE_BYTES

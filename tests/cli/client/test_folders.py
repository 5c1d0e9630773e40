"""Which files a command line stands for, and what their results are called."""

from __future__ import annotations

import os

import pytest

from ddib_fed.client.files import find_items


@pytest.fixture
def scans(tmp_path):
    for name in (
        "b.png",
        "a.TIF",
        "sub/c.jpeg",
        "sub/deep/d.v2.npy",
        "sub/notes.txt",
        "README",
        ".hid/e.png",
    ):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "scans"


def named(given, out=None):
    return [each.file for each in find_items(given, out)[0]]


def test_pipes_are_ignored_and_dead_links_are_not(scans):
    """Reading a pipe could wait for ever; a dead link is a file that somebody misses."""
    os.mkfifo(scans / "pipe.png")
    (scans / "dead.png").symlink_to(scans / "gone.png")
    items, (said,) = find_items([scans])
    assert "dead.png" in [each.file for each in items]
    assert "1 .png" in said

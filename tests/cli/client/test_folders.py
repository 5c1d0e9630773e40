"""Which files a command line stands for, and what their results are called."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from ddib_fed.cli.inputs import find_files
from ddib_fed.errors import FileMissing
from tests.formats.tiffs import tiff


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


def named(found):
    return [each.file for each in found.files]


def test_below_a_folder_paths_are_kept(scans):
    """In one order on every machine."""
    found = find_files([scans], None)
    assert named(found) == ["a.TIF", "b.png", "sub/c.jpeg", "sub/deep/d.v2.npy"]
    assert found.ignored == Counter({"hidden": 1, ".txt": 1, "without suffix": 1})


def test_a_file_that_is_named_is_called_by_its_name(scans):
    """Also one that lies deep, that is hidden, or that is not there: reading it will say so."""
    given = [scans / "sub" / "c.jpeg", scans / ".hid" / "e.png", scans / "absent.png"]
    assert named(find_files(given, None)) == ["c.jpeg", "e.png", "absent.png"]


def test_each_file_counts_once(scans):
    """A folder, and a file of it."""
    assert len(find_files([scans, scans / "b.png", scans / "sub"], None).files) == 4


def test_results_are_not_looked_into(scans):
    """They lie below the folder itself."""
    assert len(find_files([scans], scans / "sub" / "deep").files) == 3


def test_pipes_are_ignored_and_dead_links_are_not(scans):
    """Reading a pipe could wait for ever; a dead link is a file that somebody misses."""
    os.mkfifo(scans / "pipe.png")
    (scans / "dead.png").symlink_to(scans / "gone.png")
    found = find_files([scans], None)
    assert "dead.png" in [each.file for each in found.files]
    assert found.ignored[".png"] == 1


def test_what_was_ignored_is_one_line(scans):
    """The commonest first; nothing for nothing."""
    (scans / "more.txt").write_bytes(b"")
    assert find_files([scans], None).ignored_line().startswith("ignored 4 other files (2 .txt, 1 ")
    assert find_files([scans / "b.png"], None).ignored_line() == ""


def test_studies_below_a_folder_are_left_out_as_they_are_translated_apart(scans):
    (scans / "map.tif").write_bytes(tiff({256: 1, 34735: 4}))
    (scans / "sub" / "head.nii.gz").write_bytes(b"")
    (scans / "IM001").write_bytes(b"\0" * 128 + b"DICM")
    there = find_files([scans], None)
    assert "map.tif" not in [each.file for each in there.files]
    assert there.ignored == Counter({"hidden": 1, ".txt": 1, "without suffix": 1})


def test_an_empty_folder_is_an_error(tmp_path):
    """With the suffixes that count."""
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(FileMissing, match="no file to translate") as caught:
        find_files([tmp_path], None)
    assert ".jpeg" in caught.value.hint

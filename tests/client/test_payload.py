"""What becomes an item and what does not: the header of a file of which pixels alone may leave stays here."""

from __future__ import annotations

import os

import pytest

from ddib_fed.client.files import find_items, payload, payloads
from ddib_fed.errors import InputError
from tests.client.scripted_source import npy, points
from tests.formats.tiffs import tiff

MAP = tiff({256: 1, 34735: 4})
SECRET = b"Ada Lovelace"


def in_the_guise_of(opening: bytes) -> bytes:
    return opening.ljust(128, b"\0") + b"DICM" + SECRET


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("map.tif", MAP, "MAP"),
        ("later.TIFF", tiff({256: 1}, {34735: 4}), "MAP"),
        ("volume.nii.gz", b"\x1f\x8b", "NIFTI"),
        ("volume.nii", b"\x5c\1\0\0", "NIFTI"),
        ("slice.dcm", in_the_guise_of(b""), "DICOM"),
        ("slice", in_the_guise_of(b""), "DICOM"),
        ("slice.tif", in_the_guise_of(tiff({256: 1})), "DICOM"),
        ("slice.png", in_the_guise_of(b"\x89PNG\r\n\x1a\n"), "DICOM"),
        ("slice.jpg", in_the_guise_of(b"\xff\xd8\xff"), "DICOM"),
        ("points.npy", in_the_guise_of(b"\x93NUMPY"), "DICOM"),
        ("scan.jp2", b"", "PICTURE"),
    ],
)
def test_a_header_that_must_stay_is_refused_with_the_command_that_sends_pixels(tmp_path, name, content, kind):
    """The path is quoted, so that the command can be pasted."""
    path = tmp_path / f"Ada's {name}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="stays on this machine") as caught:
        payload(path)
    assert caught.value.facts["format"] == kind
    assert caught.value.hint.startswith(f"ddib translate '{tmp_path}/Ada'\"'\"'s {name}' --to ")


@pytest.mark.parametrize(
    "content", [MAP, in_the_guise_of(tiff({256: 1})), in_the_guise_of(b"\x89PNG\r\n\x1a\n")]
)
def test_nor_do_such_bytes_leave_without_a_name(content):
    """As a notebook passes them."""
    with pytest.raises(InputError, match="stays on this machine") as caught:
        payloads([npy(points()), content])
    assert caught.value.facts["item"] == "1"


def test_a_plain_tiff_is_an_item(tmp_path):
    (tmp_path / "scan.tif").write_bytes(tiff({256: 1}))
    assert payload(tmp_path / "scan.tif").read() == tiff({256: 1})


def test_pipes_are_ignored_and_dead_links_are_not(tmp_path):
    """Reading a pipe could wait for ever; a dead link is a file that somebody misses."""
    (tmp_path / "a.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dead.png").symlink_to(tmp_path / "gone.png")
    items, (said,) = find_items([tmp_path])
    assert [each.file for each in items] == ["a.png", "dead.png"]
    assert "1 .png" in said

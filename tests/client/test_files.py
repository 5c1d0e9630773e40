"""What becomes an item and what does not, and client.toml: strict, found in the usual places, relative to itself."""

import os
import re
from pathlib import Path

import pytest

from ddib_fed.client.files import find_items, payload, payloads
from ddib_fed.client.profile import Profile, candidates, find_profile, render_client_toml
from ddib_fed.errors import ConfigError, FileMissing, InputError
from tests.client.scripted_source import npy, points
from tests.formats.tiffs import tiff

MAP = tiff({256: 1, 34735: 4})
SECRET = b"Ada Lovelace"


def in_the_guise_of(opening: bytes) -> bytes:
    return opening.ljust(128, b"\0") + b"DICM" + SECRET


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("map.tif", MAP, "TIFF with a georeference"),
        ("later.TIFF", tiff({256: 1}, {34735: 4}), "TIFF with a georeference"),
        ("volume.nii.gz", b"\x1f\x8b", "NIfTI volume"),
        ("volume.nii", b"\x5c\1\0\0", "NIfTI volume"),
        ("slice.dcm", in_the_guise_of(b""), "DICOM file"),
        ("slice", in_the_guise_of(b""), "DICOM file"),
        ("slice.tif", in_the_guise_of(tiff({256: 1})), "DICOM file"),
        ("slice.png", in_the_guise_of(b"\x89PNG\r\n\x1a\n"), "DICOM file"),
        ("slice.jpg", in_the_guise_of(b"\xff\xd8\xff"), "DICOM file"),
        ("points.npy", in_the_guise_of(b"\x93NUMPY"), "DICOM file"),
        ("scan.jp2", b"", "picture of a format that nodes do not take"),
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
    with pytest.raises(InputError, match="stays on this machine") as caught:
        payloads([npy(points()), content])
    assert caught.value.facts["item"] == "1"


@pytest.mark.parametrize("name", ["notes.txt", "notes"])
def test_a_file_that_is_no_picture_is_told_so_and_not_copied_again(tmp_path, name):
    (tmp_path / name).write_text("patient 3 moved")
    with pytest.raises(InputError, match=f"{name} is no picture and no points by its name") as caught:
        payload(tmp_path / name)
    assert caught.value.hint == "leave it out, or save what it shows as PNG"


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


def text(**changes: str) -> str:
    values = {
        "institution": "north.example", "name": "alice", "source_address": "localhost:7443",
        "source_identity": "node-1.north.example", "pki": "pki",
    }  # fmt: skip
    return render_client_toml(**(values | changes))


def test_a_node_of_another_institution_is_refused(tmp_path):
    """A client talks to its own institution's node, or its pictures would go to a stranger."""
    (tmp_path / "client.toml").write_text(text(source_identity="node-1.south.example"))
    with pytest.raises(ConfigError, match=r"south\.example"):
        Profile.load(tmp_path / "client.toml")


def test_the_environment_names_the_only_place(tmp_path, monkeypatch):
    """DDIB_PROFILE wins over ./client.toml, and a wrong one is not passed over in silence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.toml").write_text(text())
    (tmp_path / "other.toml").write_text(text())
    assert find_profile({"DDIB_PROFILE": str(tmp_path / "other.toml")}) == tmp_path / "other.toml"
    with pytest.raises(FileMissing, match=r"gone\.toml"):
        find_profile({"DDIB_PROFILE": str(tmp_path / "gone.toml")})


def test_the_current_folder_comes_before_the_home(tmp_path, monkeypatch):
    """./client.toml, the first client of a node made here, then ~/.config/ddib/client.toml."""
    home = tmp_path / "config" / "ddib" / "client.toml"
    home.parent.mkdir(parents=True)
    home.write_text(text())
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert find_profile(environ) == home
    (here / "client").mkdir()
    (here / "client" / "client.toml").write_text(text())
    assert find_profile(environ).resolve() == here / "client" / "client.toml"
    (here / "client.toml").write_text(text())
    assert find_profile(environ).resolve() == here / "client.toml"


def test_the_page_of_commands_lists_every_key():
    """In docs/troubleshooting.md, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
    section = page.partition("## The client's profile")[2].partition("\n## ")[0]
    keys = " ".join(re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE))
    assert set(re.findall(r"\w+", keys)) == set(Profile.model_fields)
    named = ("./client.toml", "./client/client.toml", "~/.config/ddib/client.toml")
    assert [Path(place).expanduser() for place in named] == list(candidates({}))
    assert all(f"`{place}`" in section for place in named)

"""Files that only their owner reads, whole or not at all."""

import math
import os
from pathlib import Path

import pytest

from ddib_fed import files as private_files
from ddib_fed.errors import AlreadyExists, ConfigError
from ddib_fed.files import (
    canonical_json,
    check_private_file,
    check_private_folder,
    sync_each,
    write_file,
)


def test_a_file_is_not_overwritten_unasked(tmp_path: Path) -> None:
    write_file(tmp_path / "key", b"one", private=True, overwrite=False)
    with pytest.raises(AlreadyExists):
        write_file(tmp_path / "key", b"two", private=True, overwrite=False)
    write_file(tmp_path / "key", b"three", private=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"key": b"three"}


@pytest.mark.parametrize(("mode", "command"), [(0o000, "chmod"), (0o500, "chmod"), (0o700, "findmnt -T")])
def test_what_its_own_user_cannot_write_is_named_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, command: str
) -> None:
    """A chown to the owner that it has changes nothing: its mode forbids it, or the disk is mounted read-only."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # the tests may run as root, who may all
    monkeypatch.setattr(os, "supports_effective_ids", {os.access})
    folder, file = tmp_path / "state", tmp_path / "log"
    folder.mkdir()
    file.touch()
    folder.chmod(mode)
    file.chmod(mode & 0o600)
    for check, place, closed in ((check_private_folder, folder, "700"), (check_private_file, file, "600")):
        with pytest.raises(ConfigError, match="cannot be read and written") as refused:
            check(place)
        words = f"{command} {closed} {place}" if command == "chmod" else f"{command} {place}"
        assert refused.value.hint.startswith(words)


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_a_private_file_is_private_and_others_follow_the_umask(tmp_path, mask):
    path = tmp_path / "weights"
    path.touch(mode=0o666)
    before = os.umask(mask)
    try:
        write_file(path, b"secret", private=True)
        write_file(tmp_path / "figures", b"public")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "figures").stat().st_mode & 0o777 == 0o666 & ~mask


def synced(monkeypatch, look):
    """What `look` says of each file and folder that is brought to the disk from now on, in their order."""
    seen, real = [], os.fsync

    def fsync(descriptor):
        real(descriptor)
        seen.append(look(Path(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_a_file_and_its_name_are_on_the_disk_before_it_is_called_written(tmp_path, monkeypatch):
    """The content, then the name, then the folder: a power cut between leaves the old file."""
    path = tmp_path / "report"
    path.write_bytes(b"old")
    seen = synced(monkeypatch, lambda place: (place.is_dir(), path.read_bytes()))
    write_file(path, b"new")
    assert seen == [(False, b"old"), (True, b"new")]


@pytest.mark.parametrize("count", [1, 40])
def test_each_file_is_brought_to_the_disk_and_one_that_cannot_be_says_why(tmp_path, monkeypatch, count):
    paths = [tmp_path / str(number) for number in range(count)]
    for path in paths:
        path.write_bytes(b"content")
    seen = synced(monkeypatch, Path.readlink)
    assert sync_each(paths) == {}
    assert sorted(seen) == sorted(paths)
    failed = sync_each([*paths, tmp_path / "missing", *paths])
    assert [(place, type(error)) for place, error in failed.items()] == [(count, FileNotFoundError)]


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{", b"\xff", "9" * 10_000])
def test_json_that_cannot_be_read_is_a_value_error(text: bytes | str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        private_files.parse_json(text)


# The canonical JSON, against the examples of RFC 8785


def test_keys_are_sorted_and_nothing_is_spaced():
    assert canonical_json({"b": [1, 2.5, "x"], "a": {}}) == b'{"a":{},"b":[1,2.5,"x"]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, "é", "a\nb", {"é": 1}])
def test_what_implementations_could_write_differently_is_refused(value):
    with pytest.raises(ValueError, match=r"representable|safe integer|ASCII"):
        canonical_json(value)

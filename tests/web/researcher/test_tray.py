"""What was dropped: private files under safe names, refused by the person's own names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.errors import ImageUnreadable, InputError, ItemNotFound, UsageError
from ddib_fed.samples.images import encode_png
from ddib_fed.web.researcher import tray as module
from ddib_fed.web.researcher.recognising import Kind
from ddib_fed.web.researcher.tray import Dropped, Tray, natural, safe_name
from tests.formats.maps import write_map
from tests.formats.tiffs import tiff

PNG = encode_png(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))


@pytest.fixture
def tray(tmp_path: Path) -> Tray:
    return Tray(tmp_path)


def add(tray: Tray, label: str, data: bytes = PNG) -> Dropped:
    async def chunks():
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    return asyncio.run(tray.add(label, chunks()))


def test_a_file_lies_in_the_private_folder_whatever_it_is_called(tray: Tray, tmp_path: Path) -> None:
    """Folders and dots of its name lead nowhere."""
    for label in (
        "../../etc/scan.png",
        "/abs/scan.png",
        "a\\..\\scan.png",
        "x/.ssh/..scan.png",
        "scan\0.png",
    ):
        path = add(tray, label).path
        assert path.parent.parent == tmp_path
        assert path.read_bytes() == PNG
    assert not (tmp_path.parent / "etc").exists()


@pytest.mark.parametrize(
    ("label", "data", "error"),
    [
        ("scan.gif", PNG, InputError),
        ("scan.png", b"", ImageUnreadable),
        ("scan.png", PNG[:60], ImageUnreadable),
        ("notes/scan.jpg", PNG, ImageUnreadable),
        ("scan.npy", b"\x93NUMPY", None),
    ],
)
def test_what_cannot_be_sent_is_refused_by_its_name(
    tray: Tray, tmp_path: Path, label: str, data: bytes, error: type[Exception] | None
) -> None:
    """And leaves nothing behind; the path in the private folder is not shown. A .npy is left for the node to judge."""
    if error is None:
        add(tray, label, data)
        return
    with pytest.raises(error) as caught:
        add(tray, label, data)
    assert label in caught.value.detail
    assert str(tmp_path) not in f"{caught.value.detail} {caught.value.hint}"
    assert not list(tmp_path.iterdir())
    assert not tray.list()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")
def test_a_map_is_never_sent_as_it_is(tray: Tray, tmp_path: Path) -> None:
    """Its header would leave with it: it is sent as pixels, and refused where these cannot be read."""
    heights = np.arange(192, dtype=np.uint8).reshape(1, 12, 16)
    content = write_map(tmp_path / "town.tif", heights).read_bytes()
    assert add(tray, "town.tif", content).kind is Kind.WHOLE
    with pytest.raises(ImageUnreadable, match=r"ward/map\.tif"):
        add(tray, "ward/map.tif", tiff({256: 1, 34735: 4}))
    assert [each.label for each in tray.list()] == ["town.tif"]


@pytest.mark.parametrize("label", ["", "  ", "a/", "...", "\u202e/"])
def test_a_file_has_a_name(tray: Tray, label: str) -> None:
    """Otherwise it could not be told from others."""
    with pytest.raises(UsageError):
        add(tray, label)


def test_too_large_a_file_is_refused_while_it_comes(tray: Tray, tmp_path: Path, monkeypatch) -> None:
    """Not after the disk is full."""
    monkeypatch.setattr(module, "MAX_ITEM_BYTES", 150)
    with pytest.raises(InputError, match=r"big\.png is too large"):
        add(tray, "big.png", b"\x89PNG" * 1_000)
    assert not list(tmp_path.iterdir())


def test_slices_are_in_the_order_of_their_numbers(tray: Tray) -> None:
    """slice-2 comes before slice-10."""
    for number in (10, 2, 1):
        add(tray, f"v/slice-{number}.png")
    assert [each.label for each in tray.list()] == ["v/slice-1.png", "v/slice-2.png", "v/slice-10.png"]
    assert sorted(["b", "a10", "A9", "a"], key=natural) == ["a", "A9", "a10", "b"]


def test_files_can_be_removed_and_taken(tray: Tray, tmp_path: Path) -> None:
    """Taken ones are no longer in the tray, and stay on the disk."""
    first, second = add(tray, "a.png"), add(tray, "b.png")
    tray.remove(first.number)
    assert not first.path.exists()
    with pytest.raises(ItemNotFound):
        tray.remove(first.number)
    taken = tray.take()
    assert taken == (second,)
    assert not tray.list()
    assert second.path.exists()
    tray.put_back(taken)
    assert tray.list() == taken
    tray.clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "safe"), [("a b(1).png", "a b(1).png"), ("é:\n.png", "_.png"), (".x", "x"), ("..", "")]
)
def test_safe_names(name: str, safe: str) -> None:
    """Letters, digits and a few signs."""
    assert safe_name(name) == safe

"""Uploads: private files under safe names, read as `ddib translate` will read them."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import ImageUnreadable, InputError
from ddib_fed.web import uploads as module
from ddib_fed.web.uploads import Upload, Uploads, arranged
from tests.formats.maps import write_map
from tests.formats.tiffs import tiff

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")
PNG = encode_png(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


def add(uploads: Uploads, label: str, data: bytes = PNG) -> Upload:
    async def chunks():
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    return asyncio.run(uploads.add(label, chunks()))


def test_a_file_lies_in_the_private_folder_whatever_it_is_called(uploads: Uploads, tmp_path: Path) -> None:
    """Folders and dots of its name lead nowhere."""
    for label in (
        "../../etc/scan.png",
        "/abs/scan.png",
        "a\\..\\scan.png",
        "x/.ssh/..scan.png",
        "scan\0.png",
        f"{'é' * 140}.png",
    ):
        path = add(uploads, label).path
        assert path.resolve().is_relative_to(tmp_path)
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
def test_what_cannot_be_sent_is_refused_by_its_name(uploads, tmp_path, label, data, error):
    """And leaves nothing behind; the path in the private folder is not shown. A .npy is left for the node to judge."""
    if error is None:
        add(uploads, label, data)
        return
    with pytest.raises(error) as caught:
        add(uploads, label, data)
    assert label in caught.value.detail
    assert str(tmp_path) not in f"{caught.value.detail} {caught.value.hint}"
    assert not list(tmp_path.iterdir())
    assert not uploads.list()


def test_a_map_is_never_sent_as_it_is(uploads: Uploads, tmp_path: Path) -> None:
    """Its header would leave with it: it is sent as pixels, and refused where these cannot be read."""
    heights = np.arange(192, dtype=np.uint8).reshape(1, 12, 16)
    content = write_map(tmp_path / "town.tif", heights).read_bytes()
    assert not add(uploads, "town.tif", content).is_plain
    with pytest.raises(ImageUnreadable, match=r"ward/map\.tif"):
        add(uploads, "ward/map.tif", tiff({256: 1, 34735: 4}))
    assert [each.label for each in uploads.list()] == ["town.tif"]


def test_too_large_a_file_is_refused_while_it_comes(uploads: Uploads, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 150)
    with pytest.raises(InputError, match=r"big\.png is larger than 150 bytes"):
        add(uploads, "big.png", b"\x89PNG" * 1_000)
    assert not list(tmp_path.iterdir())


def test_what_is_translated_lies_as_it_was_dropped(uploads: Uploads, tmp_path: Path) -> None:
    """No name leads out of the folder or replaces another; dots and empty names are no folders."""
    labels = ["a/scan.png", "b/scan.png", "a/scan.png", "../../x/scan.png", "s/.hidden/🦷.png", "s//🦷.png"]
    labels += ["a/scan.png/1.png"]  # a folder that is called like a file
    for label in labels:
        add(uploads, label)
    dropped = arranged(uploads.take(), tmp_path / "job")
    found = sorted(str(path.relative_to(dropped)) for path in dropped.rglob("*") if path.is_file())
    assert found == [
        "a/scan-2.png", "a/scan-3.png", "a/scan.png/1.png", "b/scan.png", "s/hidden/🦷.png", "s/🦷.png", "x/scan.png",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"job", *(f"{n:05}" for n in range(len(labels)))}

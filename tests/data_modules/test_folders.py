"""A folder of pictures is checked before it is trained on, split by its pixels, and described in figures."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.data.folder import (
    Entry,
    Looks,
    choose_range,
    class_numbers,
    scan,
    split,
    survey,
    two_sides,
)
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import ImageUnreadable, SettingsInvalid, UsageError
from tests.data_modules.picture_examples import noise, npy_of, saved, tiff_of


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_pictures(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        put(root / name, encode_png(noise(5, 6, 3, seed=i + 1)))


def names(entries) -> list[str]:
    return [e.path.name for e in entries]


def test_pictures_of_every_format_are_found_in_the_order_of_their_paths(tmp_path):
    """In nested folders, whatever their suffix's case."""
    pixels = noise(4, 5, 3)
    put(tmp_path / "b" / "deep" / "1.PNG", encode_png(pixels))
    put(tmp_path / "b" / "2.jpeg", saved(pixels, "JPEG"))
    put(tmp_path / "a.tif", tiff_of(noise(4, 5, 1, "uint16")))
    put(tmp_path / "c.npy", npy_of(noise(4, 5, 1, "float32")[..., 0]))
    found = scan(tmp_path)
    paths = [e.path.relative_to(tmp_path).as_posix() for e in found.entries]
    assert paths == ["a.tif", "b/2.jpeg", "b/deep/1.PNG", "c.npy"]
    looks = [f"{e.looks.format} {e.looks.dtype} {e.looks.channels}" for e in found.entries]
    assert looks == ["TIFF uint16 1", "JPEG uint8 3", "PNG uint8 3", "NPY float32 1"]
    assert (found.bad, found.classes, found.ignored) == ((), (), 0)


BAD = {
    "empty.png": b"", "short.png": encode_png(noise(9, 9, 3))[:60], "text.jpg": b"not a picture",
    "moving.gif": b"GIF89a" + bytes(9), "scan.dcm": bytes(128) + b"DICM",
    "nan.npy": npy_of(np.full((3, 3), np.nan)),
}  # fmt: skip


def test_bad_files_refuse_the_folder_and_are_named(tmp_path):
    """With the reason of each, and the option that leaves them out."""
    put_pictures(tmp_path, "good.png")
    for name, content in BAD.items():
        put(tmp_path / name, content)
    with pytest.raises(ImageUnreadable) as caught:
        scan(tmp_path)
    assert caught.value.detail.startswith("6 of 7 pictures")
    assert all(name in caught.value.detail for name in BAD)
    assert "--skip-bad" in caught.value.hint
    assert caught.value.facts == {"bad": "6"}


def test_classes_come_from_the_first_sub_folder(tmp_path):
    """However deep the file lies below it."""
    put_pictures(tmp_path, "dog/1.png", "cat/young/2.png", "cat/3.png")
    found = scan(tmp_path, classes="folders")
    assert found.classes == ("cat", "dog")
    assert [e.label for e in found.entries] == ["cat", "cat", "dog"]
    assert class_numbers(found.entries, found.classes).tolist() == [0, 0, 1]


def test_two_domains_under_one_root_are_told_apart(tmp_path):
    """trainA and trainB are not mixed; each is a folder as any other."""
    put_pictures(tmp_path, "trainA/1.png", "trainB/1.png", "testA/2.png")
    with pytest.raises(UsageError, match="two domains") as caught:
        scan(tmp_path)
    assert str(tmp_path / "trainA") in caught.value.hint
    sides = two_sides(tmp_path)
    assert sides == (tmp_path / "trainA", tmp_path / "trainB", tmp_path / "testA", None)
    assert names(scan(sides[0]).entries) == ["1.png"]
    assert two_sides(tmp_path / "trainA") is None


LOOKS = Looks(1, 1, 1, "uint8", "PNG", 0, 0)
digests = st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), max_size=60)


def entries_of(found: list[str]) -> list[Entry]:
    return [Entry(Path(str(i)), None, digest, LOOKS) for i, digest in enumerate(found)]


@given(digests, st.floats(0.01, 0.9))
def test_duplicates_fall_on_one_side_and_no_side_is_empty(found, share):
    """Every entry is in one part, in the order given; two different pictures give two parts."""
    entries = entries_of(found)
    training, held_out = split(entries, share)
    assert sorted(training + held_out, key=lambda e: int(str(e.path))) == entries
    assert not {e.digest for e in training} & {e.digest for e in held_out}
    if len(set(found)) > 1:
        assert training
        assert held_out


def test_a_survey_counts_what_is_there(tmp_path):
    """Sizes, types, classes, values, duplicates and blank pictures."""
    for name in ("cat_1", "cat_2", "dog_1"):
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.full((4, 6, 3), 9, np.uint8)))
    (tmp_path / "dog_2.tif").write_bytes(tiff_of(np.arange(20, dtype=np.uint16).reshape(4, 5, 1)))
    (tmp_path / "dog_3.png").write_bytes(b"")
    found = survey(scan(tmp_path, classes="prefix", skip_bad=True))
    assert (found.channels, found.dtypes) == ({1: 1, 3: 3}, {"uint8": 3, "uint16": 1})
    text = "\n".join(found.lines)
    for part in (
        "4 pictures, 1 left out",
        "3 of 4 x 6",
        "cat (2)",
        "2 duplicates",
        "3 of one value",
        "0 to 19",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("top", "hint"), [(255, "--range 0:255"), (65_535, "mogrify -depth 8 -define png:bit-depth=8 ")]
)
@pytest.mark.parametrize("spec", ["type", "p1:p99"])
def test_pictures_of_8_and_16_bits_get_a_way_that_does_not_end_in_the_next_refusal(tmp_path, spec, top, hint):
    for name, pixels in (("a", np.uint8(9)), ("b", np.uint8(7)), ("deep", np.uint16(top))):
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.full((4, 4, 1), pixels)))
    with pytest.raises(SettingsInvalid, match=r"deep\.png: uint16") as caught:
        choose_range(scan(tmp_path), spec)
    assert hint in caught.value.hint

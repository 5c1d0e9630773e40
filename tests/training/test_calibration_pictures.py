"""The pictures of a calibration come from folders or shipped domains, held-out ones apart, anchors by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.data.shipped import ShippedPictures, shipped_domain
from ddib_fed.errors import FileMissing, InputError, UsageError
from ddib_fed.models.bundle import pretrained
from ddib_fed.training import calibrating as calibration_pictures
from ddib_fed.training.calibrating import domain_pictures, folder_anchors, shipped_truth, spaced


def write(folder: Path, names: list[str], value: int = 0) -> None:
    for number, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((32, 32, 3), value + number, np.uint8)
        path.write_bytes(encode_png(pixels))


def test_a_folder_is_split_by_content_and_comes_in_the_models_units(tmp_path: Path) -> None:
    """Nothing is in both parts, and values are in [-1, 1]."""
    write(tmp_path, [f"{i:02}" for i in range(40)])
    found = domain_pictures(pretrained("satellite"), str(tmp_path))
    parts = [{float(x) for x in part[:, 0, 0, 0]} for part in (found.train, found.held_out)]
    assert len(parts[0]) + len(parts[1]) == 40
    assert not parts[0] & parts[1]
    assert found.train.shape[1:] == (3, 32, 32)
    assert parts[0] | parts[1] == {
        float(x) for x in (np.arange(40, dtype=np.float32) / np.float32(127.5) - 1)
    }


def test_anchors_are_paired_by_their_names_below_the_folders(tmp_path: Path) -> None:
    """The order of files does not matter, and neither do suffixes."""
    write(tmp_path / "a", ["two/x", "one"], 10)
    write(tmp_path / "b", ["one", "two/x"], 100)
    found = folder_anchors(pretrained("satellite"), pretrained("relief"), (tmp_path / "a", tmp_path / "b"))
    assert found.names == ("one", "two/x")
    levels = [np.rint((x[:, 0, 0, 0] + 1) * 127.5).tolist() for x in (found.source, found.target)]
    assert levels == [[11, 10], [100, 101]]


@pytest.mark.parametrize("lonely", ["a", "b"])
def test_an_anchor_without_partner_is_named(tmp_path: Path, lonely: str) -> None:
    """In either folder: a pair that is missing must not be left out in silence."""
    for folder in ("a", "b"):
        write(tmp_path / folder, ["both", *(["alone"] if folder == lonely else [])])
    with pytest.raises(InputError, match=r"1 pictures of .*alone"):
        folder_anchors(pretrained("satellite"), pretrained("relief"), (tmp_path / "a", tmp_path / "b"))


def test_a_model_of_no_shipped_domain_needs_a_folder(tmp_path: Path) -> None:
    """The error names the option; a folder that is not there is named itself."""
    with pytest.raises(UsageError) as told:
        domain_pictures(pretrained("moons"), None)
    assert "ddib model show" in told.value.hint  # a model of points
    with pytest.raises(FileMissing, match="nowhere"):
        domain_pictures(pretrained("satellite"), str(tmp_path / "nowhere"))


def test_a_name_that_is_a_shipped_domain_and_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./relief` is the folder. A shipped domain of another size than the model's is refused before it is loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relief").mkdir()
    with pytest.raises(UsageError) as told:
        domain_pictures(pretrained("relief"), "relief")
    assert "./relief" in told.value.hint
    with pytest.raises(InputError, match="brain-t1"):
        domain_pictures(pretrained("relief"), "brain-t1")


def test_truths_are_the_partners_test_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, evenly spaced, with the clusters of what overlaps; none where two domains are no pair."""
    shown = np.arange(48, dtype=np.float32).reshape(48, 1, 1, 1) * np.ones((1, 1, 48, 48), np.float32) / 48

    def loaded(name: str) -> ShippedPictures:
        test = shown if name == "brain-t1" else -shown
        return ShippedPictures(shipped_domain(name), test[:0], test[:0], test)

    monkeypatch.setattr(calibration_pictures, "load_shipped", loaded)
    brain = shipped_truth(pretrained("brain-t1"), pretrained("brain-t2"), 5)
    assert brain is not None
    assert brain.names == ("000", "012", "024", "035", "047")
    assert brain.clusters is not None
    assert brain.clusters.shape == (5,)
    assert np.array_equal(brain.source, -brain.target)
    assert np.array_equal(brain.source, shown[[0, 12, 24, 35, 47]])
    assert shipped_truth(pretrained("brain-t1"), pretrained("relief"), 5) is None


def test_evenly_spaced_pictures_begin_with_the_first_and_end_with_the_last() -> None:
    """All of them where there are few."""
    x = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1)
    assert spaced(x, 4).ravel().tolist() == [0, 3, 6, 9]
    assert len(spaced(x, 20)) == 10

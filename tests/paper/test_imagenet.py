"""A made-up development kit: its ids become the numbers of models, never taken one for the other."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from ddib_fed.errors import InputError
from ddib_fed.paper.imagenet import read_labels, validation_pictures

# The kit's id, WordNet id, name: the order of ids is not that of WordNet ids.
CLASSES = [
    (1, "n02119789", "kit fox"),
    (2, "n02100735", "English setter"),
    (3, "n01440764", "tench, Tinca tinca"),
]
GROUP = (4, "n02084071", "dog")
TRUTH = [3, 1, 1, 2]
FIELDS = [
    ("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O"),
    ("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O"),
]  # fmt: skip


def table_of(rows: list[tuple[int, str, str]]) -> np.ndarray:
    full = [(*row, "what it is", int(row == GROUP), [2] if row == GROUP else [], 0, 1300) for row in rows]
    return np.array(full, dtype=FIELDS).reshape(-1, 1)


@pytest.fixture
def kit(tmp_path) -> Path:
    """Laid out as the unpacked kit: everything in data/."""
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": table_of([*CLASSES, GROUP])})
    truth = "\n".join(map(str, TRUTH)) + "\n"
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return data.parent


def test_one_folder_of_pictures_takes_its_classes_from_the_kit(kit, tmp_path):
    """By the number in the name; sorted by class, then by name."""
    (folder := tmp_path / "val").mkdir()
    for name in ("readme.txt", *(f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 5))):
        (folder / name).touch()
    found = validation_pictures(folder, kit)
    numbers = {number: [int(path.stem[-8:]) for path in paths] for number, paths in found.items()}
    assert numbers == {0: [1], 1: [4], 2: [2, 3]}


def filled(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "b.JPEG").touch()
        (root / name / "a.png").touch()
    return root


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("n02119789", "dogs"), "neither"),
        (("260", "n02119789"), "neither"),
        (("3",), "the classes are 0 to 2"),
        (("n09999999",), "not one of the kit's"),
    ],
)
def test_sub_folders_whose_class_cannot_be_told_are_refused(tmp_path, kit, names, why):
    with pytest.raises(InputError, match=why):
        validation_pictures(filled(tmp_path / "val", *names), kit)


@pytest.mark.parametrize("rows", [[], [(1, "n02119789", "a"), (3, "n02100735", "b")], [(1, "fox", "a")]])
def test_a_table_that_does_not_number_its_classes_is_refused(kit, rows):
    """Gaps, repetitions, other names: a shifted number would be a wrong class for every picture."""
    savemat(kit / "data" / "meta.mat", {"synsets": table_of([*rows, GROUP])})
    with pytest.raises(InputError):
        read_labels(kit)

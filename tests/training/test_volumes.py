"""Volumes to train on: what becomes of NIfTI files of several spacings and orientations, and of too few."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from ddib_fed.data.folder import expand
from ddib_fed.errors import InputError, SettingsInvalid
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from ddib_fed.training.sources import open_source, own_samples

NETWORK = {"channels": [8, 8], "attention_levels": [False, False], "num_res_blocks": 1, "norm_num_groups": 4}


def head(spacing: tuple[float, float, float], seed: int) -> np.ndarray:
    """A ball of 40 mm that is brighter above, with a spot that differs, (x, y, z) uint16 in a field of 60 mm."""
    places = np.stack(np.meshgrid(*[np.arange(0.5 * mm - 30, 30, mm) for mm in spacing], indexing="ij"))
    inside = np.square(places).sum(0) < 20**2
    spot = np.random.default_rng(seed).uniform(-8, 8, (3, 1, 1, 1))
    bright = 500 + 10 * places[2] + 300 * (np.square(places - spot).sum(0) < 6**2)
    return np.where(inside, bright, 0).astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, spacing in enumerate([(2.0, 2.0, 2.0), (2.0, 2.0, 4.0), (1.5, 2.0, 2.0), (2.0, 2.0, 2.0)]):
        affine = np.diag([*spacing, 1.0])
        values = head(spacing, number)
        if number == 3:  # from right to left, and upside down
            values, affine = values[::-1, :, ::-1], np.diag([-2.0, 2.0, -2.0, 1.0])
        (tmp_path / "heads").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "heads" / f"{number}.nii.gz")
    return tmp_path / "heads"


def config(folder: Path, **changes) -> TrainConfig:
    fields = {
        "images": folder, "slices": "none", "size": 16, "network": NETWORK, "steps": 2, "batch": 2, "samples": 2,
        "checkpoint_every": 2, "held_out": 0.25,
    }  # fmt: skip
    return TrainConfig(kind="pictures", **fields | changes)


def test_volumes_become_blocks_of_one_spacing_and_orientation(folder: Path) -> None:
    lines: list[str] = []
    source = open_source(config(folder), say=lines.append)
    assert source.shape == (1, 16, 16, 16)
    assert source.picture.spacing == (2.0, 2.0, 2.0)
    assert (source.picture.slices, source.picture.intensity.partition("@")[0]) == (
        "none",
        "percentile:0.5,99.5",
    )
    assert "4 volumes" in lines[0]
    assert "held out are whole files or series" in lines[0]
    # Depth leads upwards, where the ball is brighter.
    shown = np.ma.masked_less(
        np.concatenate([source.train[:, 0, :16, :16, :16], source.held_out[:, 0]]), -0.9
    )
    profile = shown.mean(axis=(0, 2, 3))
    assert profile[-4:].mean() > profile[:4].mean()


def test_a_model_of_volumes_is_trained_says_its_grid_and_finds_its_data_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ddib_fed.training.pictures.SAMPLES", 8)
    made = train(config(folder), tmp_path / "model").manifest
    assert (made.sample_kind, made.sample_shape) == ("volume", (1, 16, 16, 16))
    assert made.picture.spacing == (2.0, 2.0, 2.0)
    assert (tmp_path / "model" / "run" / "samples.png").is_file()
    found = own_samples(load_bundle(tmp_path / "model").manifest, folder, 10, 4)
    assert found.held_out.shape[1:] == (1, 16, 16, 16)
    assert np.abs(expand(found.train)).max() <= 1


def test_one_volume_cannot_be_held_out_of_itself(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="fewer than 2 subjects"):
        open_source(config(folder))


def test_volumes_of_two_rules_are_refused(folder: Path) -> None:
    values = (head((2.0, 2.0, 2.0), 5) // 4).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), folder / "bytes.nii")
    with pytest.raises(SettingsInvalid, match="different rules"):
        open_source(config(folder))


def test_a_damaged_file_is_named_or_left_out(folder: Path) -> None:
    (folder / "9.nii").write_bytes((folder / "0.nii.gz").read_bytes()[:200])
    with pytest.raises(InputError, match=r"9\.nii"):
        open_source(config(folder))
    assert open_source(config(folder, skip_bad=True)).shape == (1, 16, 16, 16)

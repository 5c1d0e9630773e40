"""`ddib bids`: a dataset becomes a derivative dataset of the same geometry, which a validator accepts."""

import json
import shutil
import subprocess

import nibabel
import numpy as np
import pytest

from ddib_fed.datasets import shipped_bytes
from ddib_fed.errors import AlreadyExists, InputError, UsageError
from ddib_fed.testing import ddib

WAY = (
    "--source",
    "brain-t1",
    "--target",
    "brain-t2",
    "--suffix",
    "T1w",
    "--as",
    "T2w",
    "--evaluations",
    12,
    "--skull-stripped",
    "yes",
)


@pytest.fixture
def dataset(tmp_path):
    """Two subjects, one of them twice, each a head of three slices at 2 x 2 x 4 mm."""
    root = tmp_path / "study"
    (slices,) = shipped_bytes("brain-t1", ["test"])
    for folder, name in (("sub-01/ses-a", "sub-01_ses-a_T1w"), ("sub-01/ses-b", "sub-01_ses-b_run-1_T1w"),
                         ("sub-02", "sub-02_T1w"), ("sub-02", "sub-02_T2w")):  # fmt: skip
        values = slices[:3, 0, ::-1].transpose(2, 1, 0).astype(np.int16)
        path = root / folder / "anat" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 4.0, 1.0]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
    described = {"Name": "Ours", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(described))
    return root


def test_images_become_derivatives(dataset, tmp_path):
    """Of the subjects and suffix that are named, with their geometry; again, nothing is done twice."""
    out = dataset / "derivatives" / "ddib"
    ddib("bids", dataset, out, "participant", *WAY)
    made = sorted(
        str(path.relative_to(out)) for path in out.rglob("sub-*_T2w.nii.gz") if ".ddib" not in path.parts
    )
    assert made == [
        "sub-01/ses-a/anat/sub-01_ses-a_desc-ddib_T2w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_run-1_desc-ddib_T2w.nii.gz",
        "sub-02/anat/sub-02_desc-ddib_T2w.nii.gz",
    ]
    given, result = nibabel.load(dataset / "sub-02/anat/sub-02_T1w.nii.gz"), nibabel.load(out / made[2])
    assert result.shape == given.shape
    np.testing.assert_array_equal(result.affine, given.affine)
    sidecar = json.loads((out / made[2].replace(".nii.gz", ".json")).read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-02/anat/sub-02_T1w.nii.gz"]
    assert "not acquired" in sidecar["Description"]
    assert sidecar["DDIB"]["target_domain"] == "brain-t2"
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert (out / described["DatasetLinks"]["raw"]).resolve() == dataset.resolve()
    before = (out / made[0]).stat().st_mtime_ns
    said = ddib(
        "bids", dataset, out, "participant", *WAY, "--participant-label", "sub-01", "--session-label", "a"
    )
    assert "by an earlier run" in said
    assert (out / made[0]).stat().st_mtime_ns == before
    if shutil.which("bids-validator-deno"):
        checked = subprocess.run(["bids-validator-deno", out], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout


def test_what_is_not_there_is_named(dataset, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="pairs"):
        ddib("bids", dataset, out, "participant", *WAY, "--set", "pairs=1:2")
    with pytest.raises(InputError, match=r"no T1w image of sub-07"):
        ddib("bids", dataset, out, "participant", *WAY, "--participant-label", "07")
    with pytest.raises(InputError, match=r"no FLAIR image; it has T1w, T2w"):
        ddib("bids", dataset, out, "participant", *WAY, "--suffix", "FLAIR")
    with pytest.raises(InputError, match=r"no BIDS dataset: dataset_description\.json is not there"):
        ddib("bids", dataset / "sub-01", out, "participant", *WAY)
    with pytest.raises(AlreadyExists, match="what ddib bids did not write"):
        ddib("bids", dataset, dataset, "participant", *WAY)
    with pytest.raises(UsageError, match="does not say whether it is skull-stripped"):
        ddib("bids", dataset, out, "participant", *WAY[:-2])
    assert not out.exists()

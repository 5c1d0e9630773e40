"""`ddib study`: its figures are what the results on the disk have, and those of the challenge's own code."""

import json
import sys

import nibabel
import numpy as np
import pytest

from ddib_fed import study_scores
from ddib_fed.cli.main import run
from ddib_fed.study_ways import BRIDGE, HISTOGRAM, LOCATION, MAP, SOURCE
from tests.formats.test_itk import metaimage

SHAPE = (4, 48, 48)  # k, j, i
MODEL = '\nmodel = "brain-t1-as-t2"\ncalibration = "brain-t1-as-t2"\n'
SEGMENT = """
import sys, nibabel, numpy
image = nibabel.load(sys.argv[1])
labels = numpy.digitize(image.get_fdata(), (40, 120)).astype("uint8")
nibabel.save(nibabel.Nifti1Image(labels, image.affine), sys.argv[2])
"""


def head(seed, *, gain=1.0):
    k, j, i = np.indices(SHAPE)
    radius = np.hypot((j - 23.5 - seed % 3) / (1 + 0.05 * seed), i - 23.5)
    values = np.where(radius < 18, 90, 0) + np.where(radius < 9 + seed + k, 90, 0)
    noise = np.random.default_rng(seed).normal(0, 4, SHAPE)
    return np.clip(gain * values + noise, 0, 255).astype(np.int16)


def mha(path, values):
    path.write_bytes(metaimage(values.astype("<i2").tobytes(), shape=values.shape[::-1]))


def plan(folder, text, **facts):
    said = {
        "unit": "arbitrary", "range": [0, 255], "mask": "none", "dilated_mm": 0, "registration": "none needed",
        "trained_on": [], "evaluations": 4,
    } | facts  # fmt: skip
    lines = [f"{name} = {json.dumps(value)}" for name, value in said.items() if value is not None]
    (folder / "plan.toml").write_text("\n".join([*lines, text.replace("MODEL", MODEL)]), encoding="utf-8")
    return ["study", str(folder / "plan.toml"), "--out", str(folder / "out")]


SYNTHESIS = """protocol = "synthesis"
[source.mr]
images = "{subject}/mr.mha" MODEL
[target]
model = "brain-t2"
images = "{subject}/ct.mha"
reference = "{subject}/ct.mha"
"""


def challenge(folder, subjects=("1BA001", "1BA002")):
    """The layout of SynthRAD: CASE/{mr,ct,mask}.mha."""
    mask = np.pad(np.ones((4, 32, 36)), ((0, 0), (8, 8), (6, 6)))
    for seed, subject in enumerate(subjects):
        (folder / subject).mkdir()
        for name, values in (("mr", head(seed)), ("ct", 255 - head(seed)), ("mask", mask)):
            mha(folder / subject / f"{name}.mha", values)


def test_figures_are_those_of_the_public_code():
    """Of SynthRAD2025/metrics on these volumes: MAE 100.909468517, PSNR 30.184267628, MS-SSIM 0.969210137."""
    k, j, i = np.indices((40, 100, 110)).astype(np.float64)
    truth = 600 * np.sin(k / 5 + j / 9) * np.cos(i / 7) - 100
    made = truth + 250 * np.cos(k / 3 + i / 11) * np.sin(j / 4)
    mask = ((k - 20) / 18) ** 2 + ((j - 50) / 45) ** 2 + ((i - 55) / 50) ** 2 < 1
    found = study_scores.synthesis(made.astype(np.float32), truth.astype(np.float32), mask, (-1024.0, 3000.0))
    wanted = {"mae": 100.90946851726625, "psnr": 30.184267627977327, "ms_ssim": 0.969210137245713}
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_a_study_in_the_challenge_s_layout(tmp_path, capsys):
    """Each way has the figures that its own file has in the mask; results lie as the truth does, under its name."""
    challenge(tmp_path)
    seen = {"mask": "{subject}/mask.mha", "trained_on": ["1BA002"], "shares": [0.5]}
    assert run(plan(tmp_path, SYNTHESIS, **seen)) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out/study.json").read_text())
    ways = [SOURCE, HISTOGRAM, LOCATION, MAP, BRIDGE, f"{BRIDGE}, share 0.5"]
    assert [row[0] for row in report["tables"][0]["rows"]] == ways
    for at, subject in enumerate(("1BA001", "1BA002")):
        truth, _ = study_scores.read(tmp_path / subject / "ct.mha")
        mask, affine = study_scores.read(tmp_path / subject / "mask.mha")
        made, own = study_scores.read(tmp_path / "out/synthetic/mr" / subject / "ct.mha")
        np.testing.assert_allclose(own, affine, atol=1e-6)
        alone, _ = study_scores.read(tmp_path / "out/map/mr" / subject / "mr.mha")
        for way, values in ((BRIDGE, made), (MAP, alone)):
            mae = np.abs(values - truth)[mask > 0].mean()
            assert report["figures"][way][at]["mae"] == pytest.approx(mae, rel=1e-6)
    assert "the models have seen 1 of 2 subjects (1BA002)" in said
    assert "there are 2 subjects: intervals are rough" in said
    assert "voxels beside" not in said
    page = (tmp_path / "out/study.html").read_text()
    assert all(text in page for text in (*ways, "none needed", report["models"]["brain-t2"][:16]))


@pytest.mark.slow
def test_a_truth_that_lies_beside_its_source_or_beyond_the_range_is_named(tmp_path, capsys):
    challenge(tmp_path, ["1BA001"])
    mha(tmp_path / "1BA001/ct.mha", 300 - np.roll(head(0), 4, axis=2))
    assert run(plan(tmp_path, SYNTHESIS)) == 0
    said = capsys.readouterr().out
    assert "4 voxels beside" in said
    assert "outside of 0 to 255" in said


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"range": None}, "the fixed range of PSNR and MS-SSIM"),
        ({"registration": None}, "how source and truth were registered"),
        ({"mask": "{subject}/no.mha"}, "its mask"),
        ({"shares": [2.0]}, "share"),
        ({"rnge": [0, 1]}, "did you mean 'range'"),
    ],
)
def test_what_no_study_may_assume_is_asked_for(facts, says, tmp_path, capsys):
    challenge(tmp_path, ["1BA001"])
    assert run(plan(tmp_path, SYNTHESIS, **facts)) != 0
    assert says in capsys.readouterr().err


def test_a_truth_on_another_grid_is_refused(tmp_path, capsys):
    challenge(tmp_path, ["1BA001"])
    mha(tmp_path / "1BA001/ct.mha", head(0)[:, :40])
    assert run(plan(tmp_path, SYNTHESIS)) != 0
    assert "it has 48 x 40 x 4 voxels, the scan 48 x 48 x 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_travelling_subjects_are_harmonised(tmp_path, capsys):
    """Where two sites differ by a gain, a classifier tells them, and volumes agree once they match."""
    (tmp_path / "segment.py").write_text(SEGMENT)
    for site, gain in {"a": 1.0, "b": 0.7, "target": 1.0}.items():
        for seed in range(3):
            place = tmp_path / f"{site}/sub-{seed}/anat"
            place.mkdir(parents=True)
            image = nibabel.Nifti1Image(head(seed, gain=gain).T, np.diag([1, 1, 3, 1]))
            nibabel.save(image, place / f"sub-{seed}_T1w.nii.gz")
    name = "sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
    of = "".join(f'[source.{site}]\nimages = "{site}/{name}" MODEL' for site in ("a", "b"))
    target = f'[target]\nmodel = "brain-t2"\nimages = "target/{name}"\nreference = "target/{name}"\n'
    segmentation = f"{sys.executable} {tmp_path / 'segment.py'} {{input}} {{output}}"
    assert run(plan(tmp_path, f'protocol = "harmonisation"\n{of}{target}', segmentation=segmentation)) == 0
    rows = json.loads((tmp_path / "out/study.json").read_text())["tables"][1]["rows"]
    source, matched = (next(row for row in rows if row[0] == way) for way in (SOURCE, HISTOGRAM))
    assert float(source[1].split()[0]) > float(matched[1].split()[0])
    assert float(matched[2]) > float(source[2])


@pytest.mark.slow
def test_without_a_truth_records_and_distances_speak(tmp_path, capsys):
    challenge(tmp_path)
    text = SYNTHESIS.replace("synthesis", "unpaired").replace('images = "{subject}/ct.mha"\n', "")
    assert run(plan(tmp_path, text, registration=None, mask=None)) == 0
    first, alone = json.loads((tmp_path / "out/study.json").read_text())["tables"]
    assert first["columns"][-1] == "Frechet distance to the target"
    assert [row[0] for row in alone["rows"]][:2] == ["round trip dB", "marked doubtful, share"]

"""Volumes are read as the source's model was trained to read them; another rule is said, or refused if it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.study import Options
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import NORTH, TARGET, SourceNodeDouble
from tests.formats.dicom.files import write_series

pytestmark = pytest.mark.slow
OWN = "percentile:1,99@0:255"


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    node.script.pictures = True
    yield node
    node.stop()


@pytest.fixture
def trained(north):
    """Say how the model of the node was trained."""

    def say(intensity: str, slices: str = "") -> None:
        north.script.listed = pb.ListDomainsResponse(
            institution=NORTH,
            domain="brain",
            sample_kind="picture",
            sample_shape=[1, 8, 8],
            intensity=intensity,
            slices=slices,
        )

    return say


@pytest.fixture
def head(tmp_path) -> Path:
    values = np.random.default_rng(0).integers(0, 1000, (9, 7, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "head.nii")
    return tmp_path / "head.nii"


@pytest.fixture
def translate(north, tmp_path):
    place = ["--to", TARGET, "--out", str(tmp_path / "out"), "--profile", str(north.profile_path)]
    return lambda given, *words: run(["translate", str(given), *place, *words])


def sent(north) -> list[bytes]:
    return [content for job in north.service.jobs.values() for content in job.inputs]


def items(path: Path, *options: str) -> list[bytes]:
    return [item for study in open_paths([path], Options(*options)).studies for item in study.items()]


def options_of(out: Path, name: str = "head") -> dict[str, object]:
    return json.loads((out / f"{name}.json").read_text())["study"]["options"]


def test_a_volume_is_read_as_the_models_own_were(translate, trained, north, head, tmp_path, capsys):
    """The record says which rule that is, and whose; the same command finds the result again."""
    trained(OWN, "coronal")
    assert translate(head) == 0
    assert sent(north) == items(head, OWN, "coronal")
    assert options_of(tmp_path / "out") == {"intensity": OWN, "intensity_of": "model", "slices": "coronal"}
    assert "warning" not in capsys.readouterr().err
    assert translate(head, "--intensity", OWN) == 0
    assert "by an earlier run" in capsys.readouterr().out


def test_a_model_of_hounsfield_units_is_given_no_other_numbers(translate, trained, north, tmp_path, capsys):
    trained("hu")
    values = np.random.default_rng(0).integers(0, 2000, (3, 12, 10))
    write_series(tmp_path / "ct", values, header="CT_small.dcm", intercept=-1024.0)
    assert translate(tmp_path / "ct", "--intensity", "percentile:1,99") == ExitCode.USAGE
    assert "trained in Hounsfield units" in capsys.readouterr().err
    assert not north.script.seen("SubmitJob")

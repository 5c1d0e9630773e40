"""Volumes through two nodes: the same as in one process, and once each whatever is killed."""

import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ddib_fed import Request
from ddib_fed.client.in_process import InProcess
from ddib_fed.client.results import Translated
from ddib_fed.data.pictures import decode_volume
from ddib_fed.engine.local_party import open_party
from ddib_fed.errors import KindMismatch, ShapeMismatch
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.record import Part, Settings
from ddib_fed.testing import ddib
from ddib_fed.v1 import translation_pb2 as pb
from tests.e2e.harness import two_nodes
from tests.e2e.in_process import InProcessNodes
from tests.e2e.operation.test_durability import check_finished_once, first_progress
from tests.node.picture_examples import noise, png_bytes
from tests.node.volume_examples import SIDES, npy, save_volume_model, volume_model, voxels

pytestmark = pytest.mark.e2e

SETTINGS = Settings(evaluations=8)
NORTH = PictureFormat(spacing=(2.0, 1.0, 1.0))
SOUTH = PictureFormat(low=-1000.0, high=2000.0, bits=16, spacing=NORTH.spacing)
TARGET = "south.example/south"


def numbers(result: Translated, part: Part) -> np.ndarray:
    data = result.files[part].data
    return np.load(io.BytesIO(data)) if part is Part.LATENT else decode_volume(data).astype(float)[..., 0]


def test_volumes_go_there_and_back_as_in_one_process(tmp_path: Path) -> None:
    """Files, latents and figures; what comes has the target's bits and scale, what comes back the source's."""
    bundles = volume_model("north", seed=1, form=NORTH), volume_model("south", seed=2, form=SOUTH)
    given = [tmp_path / f"{number}.npy" for number in range(2)]
    for number, path in enumerate(given):
        path.write_bytes(npy(voxels(seed=number)))
    client = InProcess(*map(open_party, bundles))
    asked = Request(SETTINGS, cycle=True, keep_latents=True)
    local = [*client.translate(given, client.target, asked)]
    with InProcessNodes(tmp_path / "nodes", *bundles) as nodes:
        federated = nodes.translate(given, asked)
        own = nodes.source.ask("ListDomains", pb.ListDomainsRequest())
    assert (own.sample_kind, [*own.sample_shape], [*own.spacing_mm]) == ("volume", [1, *SIDES], [2, 1, 1])
    assert (own.domains[0].status, own.domains[0].size_rule) == ("ready", "refuse")
    for number, mine in enumerate(local):
        theirs = federated[number]
        for part, bound in ((Part.LATENT, 2e-5), (Part.TRANSLATION, 1), (Part.RETURNED, 1)):
            np.testing.assert_allclose(numbers(mine, part), numbers(theirs, part), atol=bound)
        assert decode_volume(theirs.files[Part.TRANSLATION].data).dtype == np.uint16
        picture, here = theirs.record.picture, mine.record.picture
        assert picture is not None
        assert here is not None
        assert (picture.depth, picture.height, picture.width, picture.low) == (*SIDES, -1000.0)
        assert picture.cycle_psnr == pytest.approx(here.cycle_psnr, abs=0.5)
        assert picture.cycle_psnr > 35
        error = np.square((numbers(theirs, Part.RETURNED) - voxels(seed=number)) / 127.5).mean()
        assert picture.cycle_mse == pytest.approx(error, abs=(2 / 255) ** 2 / 6)


SCENE = (12, 16, 16)
"""Wider than the models, whose blocks overlap."""


def test_a_killed_node_goes_on_with_volumes_and_others_are_refused(tmp_path: Path) -> None:
    """kill -9 in the middle of a job; pictures and volumes of another size are refused before anything is computed; a
    NIfTI comes back with its affine.
    """
    models = tmp_path / "of-north", tmp_path / "of-south"
    save_volume_model(models[0], "north", seed=1, form=NORTH)
    save_volume_model(models[1], "south", seed=2, form=SOUTH)
    with two_nodes(tmp_path, *models, settings={"scene": "12x16x16"}) as pair:
        assert "volume 1x12x16x16" in ddib("domains", "--profile", pair.profile)
        ddib("doctor", "--profile", pair.profile)
        assert "volume" in ddib("status", "--config", pair.source.config_path)
        with pair.client() as client:
            for content, error in (
                (png_bytes(noise()), KindMismatch),
                (npy(np.zeros((9, 9, 9))), ShapeMismatch),
            ):
                with pytest.raises(error):
                    client.submit([content], TARGET, Request(SETTINGS))
            job = client.submit(
                [npy(voxels(seed=n, sides=SCENE)) for n in range(3)], TARGET, Request(Settings(evaluations=48)),
            )  # fmt: skip
            first_progress(client, job.job_id, "decode")
            pair.source.kill()
            pair.source.start(wait=False)
            check_finished_once(pair, client, job.job_id, 3)
        affine = np.array([[0, 0.6, 0.8, -9], [-1, 0, 0, 7], [0, -0.8, 0.6, 3], [0, 0, 0, 1]]) @ np.diag(
            [1, 2, 1, 1]
        )
        given = nibabel.Nifti1Image(voxels(sides=(16, 12, 16)), affine)
        nibabel.save(given, tmp_path / "head.nii.gz")
        ddib("translate", tmp_path / "head.nii.gz", "--to", TARGET, "--evaluations", 8, "--cycle",
             "--out", tmp_path / "out", "--profile", pair.profile)  # fmt: skip
        made = nibabel.load(tmp_path / "out" / "head.nii.gz")
        np.testing.assert_allclose(made.affine, affine, atol=1e-4)
        assert made.shape == given.shape
        record = json.loads((tmp_path / "out" / "head.json").read_text())
        assert record["study"]["volumes"]["resampled"] == [False] * 3
        assert record["picture"]["cycle_psnr"] > 35

"""The module of 3D Slicer, over the real scene of slicer-core where that is installed."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ddib_fed import DdibError, Model, Request, Settings
from ddib_fed.datasets import shipped_bytes

slicer = pytest.importorskip("slicer", reason="no 3D Slicer: make test-field installs slicer-core")
import vtk  # noqa: E402
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy  # noqa: E402

sys.path.append(str(Path(__file__).parents[1] / "slicer-extension" / "DDIBTranslate"))
import DDIBTranslate  # noqa: E402

OBLIQUE = np.array([[-1.9, 0, -1.2, 11.5], [0, -2, 0, 20.25], [-0.6, 0, 3.8, -7], [0, 0, 0, 1.0]])


def test_a_volume_of_the_scene_becomes_one_of_its_geometry() -> None:
    (heads,) = shipped_bytes("brain-t1", ["test"])
    values = np.ascontiguousarray(heads[:3, 0]).astype(np.int16)
    picture, matrix, made_at = vtk.vtkImageData(), vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    picture.SetDimensions(48, 48, 3)
    picture.GetPointData().SetScalars(numpy_to_vtk(values.ravel(), deep=True, array_type=vtk.VTK_SHORT))
    matrix.DeepCopy(OBLIQUE.ravel())
    scene, volume, told = slicer.vtkMRMLScene(), slicer.vtkMRMLScalarVolumeNode(), []
    volume.SetName("head")
    volume.SetIJKToRASMatrix(matrix)
    scene.AddNode(volume)
    here = Model.open("brain-t1", threads=1).to(Model.open("brain-t2", threads=1))
    with pytest.raises(DdibError, match="head has no voxels"):
        DDIBTranslate.translate_volume(volume, here, here.target)
    volume.SetAndObserveImageData(picture)
    request = Request(Settings(evaluations=12))
    made = DDIBTranslate.translate_volume(
        volume, here, here.target, request, tell=lambda *each: told.append(each)
    )
    made.GetIJKToRASMatrix(made_at)
    there = np.array([[made_at.GetElement(i, j) for j in range(4)] for i in range(4)])
    np.testing.assert_allclose(there, OBLIQUE, atol=1e-4)
    assert vtk_to_numpy(made.GetImageData().GetPointData().GetScalars()).std() > 10
    assert made.GetName() == "head as brain-t2 (synthetic)"
    assert '"target_domain":"brain-t2"' in made.GetAttribute(DDIBTranslate.RECORD)
    assert scene.GetNodeByID(made.GetID()) is made
    assert told[-1] == (1.0, "slice 3 of 3")

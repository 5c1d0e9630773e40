"""A series, a volume and a map through two real nodes: what comes out, and that no header left this machine."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import rasterio

from ddib_fed.models.bundle import amend_bundle
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.testing import ddib
from tests.e2e.harness import two_nodes
from tests.formats.dicom.files import words_of, write_series
from tests.formats.maps import WHERE, write_map
from tests.security.tap.relay import Tap
from tests.security.tap.search import Place, Secrets, Traffic, look

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")]

SECRET = "Ada-Lovelace-1815"
RULE = "percentile:0.5,99.5@0:255"
AFFINE = np.array([[0.0, 0, -2, 70], [2, 0, 0, -60], [0, 2, 0, -31], [0, 0, 0, 1]])


def head() -> np.ndarray:
    """Coronal slices of the template in `nilearn`, as the models were trained: (3, 80, 80) uint8, upright."""
    path = (
        resources.files("nilearn") / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    )
    volume = np.asarray(nibabel.Nifti1Image.from_filename(str(path)).dataobj, dtype=np.uint8)
    slices = volume[18:178, 100:106:2, :160].transpose(1, 2, 0)[:, ::-1]
    return slices.reshape(3, 80, 2, 80, 2).mean(axis=(2, 4)).round().astype(np.uint8)


def write_volume(path: Path, slices: np.ndarray) -> None:
    """A NIfTI whose axes are none of RAS, with two empty slices behind, and secrets in every text of its header."""
    canonical = np.zeros((80, 5, 80), dtype=np.int16)
    canonical[:, :3] = slices[:, ::-1].transpose(2, 0, 1).astype(np.int16) * 4
    plain = nibabel.Nifti1Image(canonical, np.diag([2.0, 2, 2, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(plain.affine), nibabel.io_orientation(AFFINE)
    )
    image = nibabel.Nifti1Image(np.asarray(plain.as_reoriented(turn).dataobj), AFFINE)
    image.header["descrip"], image.header["aux_file"] = f"{SECRET}-descrip", f"{SECRET}-aux"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{SECRET}-comment".encode()))
    nibabel.save(image, path)


@dataclass
class Hospital:
    """North's client, all of whose bytes to its node are kept, after one translation."""

    given: Path
    out: Path
    slices: np.ndarray
    secrets: Secrets
    traffic: Traffic


def header_secrets(given: Path) -> Secrets:
    """Texts of all headers, their names, and the headers' own bytes."""
    found = Secrets()
    for path in sorted((given / "Ada-series").iterdir()):
        for word in words_of(path):
            found.word(f"{path.name}: {word}", word)
        content = path.read_bytes()
        found.long.add(f"header of {path.name}", content[: content.rindex(b"\xe0\x7f\x10\x00")])
    content = (given / "Ada-volume.nii").read_bytes()
    found.long.add(
        "header of the volume", content[: int(nibabel.load(given / "Ada-volume.nii").dataobj.offset)]
    )
    found.word("reference system of the map", "UTM zone 33N")
    for word in (SECRET, "Ada-map", "Ada-series", "Ada-volume", str(given)):
        found.word(word, word)
    return found


@pytest.fixture(scope="module")
def hospital() -> Iterator[Hospital]:
    with tempfile.TemporaryDirectory(prefix="ddib-formats-") as name:
        folder, slices = Path(name), head()
        pair = two_nodes(folder, "brain-t1", "brain-t2")
        own = PictureFormat(intensity=RULE, slices="coronal")  # as if it was trained on volumes
        amend_bundle(folder / "north" / "model", picture=own)
        (given := folder / "given").mkdir()
        write_series(given / "Ada-series", slices.astype(int) * 4, PatientName=SECRET, PatientID=f"{SECRET}-id",
                     BurnedInAnnotation="NO")  # fmt: skip
        write_volume(given / "Ada-volume.nii", slices)
        (given / "maps" / "ward").mkdir(parents=True)
        write_map(given / "maps" / "ward" / "Ada-map.tif", slices[:1], owner=SECRET)
        profile = pair.profile
        tap = Tap(pair.source.port, pair.source.config.paths.pki, profile.parent / "pki")
        profile.write_text(profile.read_text().replace(str(pair.source.port), str(tap.port)))
        with contextlib.closing(tap), pair:
            words = ("translate", given / "Ada-series", given / "Ada-volume.nii", given / "maps",
                     "--to", "south.example/brain-t2", "--out", folder / "out", "--evaluations", 12, "--profile",
                     profile)  # fmt: skip
            ddib(*words)
        yield Hospital(given, folder / "out", slices, header_secrets(given), Traffic(tap.calls))


def test_a_series_a_volume_and_a_map_come_out(hospital: Hospital) -> None:
    """Each in the place of its source, and pictures of the same head; the series is marked as synthetic."""
    sources = list(map(pydicom.dcmread, (hospital.given / "Ada-series").iterdir()))
    made = [pydicom.dcmread(path) for path in sorted((hospital.out / "Ada-series" / "series-1").iterdir())]
    assert {str(m.ImagePositionPatient) for m in made} == {str(s.ImagePositionPatient) for s in sources}
    assert {m[0x0008001C].value for m in made} == {"YES"}
    assert {m.SOPInstanceUID for m in made}.isdisjoint({s.SOPInstanceUID for s in sources})
    for dataset, plane in zip(made, hospital.slices, strict=True):
        check_head(dataset.pixel_array, plane)
    volume = nibabel.load(hospital.out / "Ada-volume.nii")
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert volume.shape == nibabel.load(hospital.given / "Ada-volume.nii").shape
    slices = np.asarray(nibabel.as_closest_canonical(volume).dataobj).transpose(1, 2, 0)[:, ::-1]
    assert not slices[3:].any(), "empty slices stay empty"
    assert np.median(np.abs(slices[:3].astype(int) - np.stack([m.pixel_array for m in made]))) < 12
    with rasterio.open(hospital.out / "ward" / "Ada-map.tif") as made_map:
        assert (made_map.crs, made_map.transform) == (
            rasterio.crs.CRS.from_epsg(32633), WHERE["transform"],
        )  # fmt: skip
        check_head(made_map.read(1), hospital.slices[0])
    assert (hospital.out / "ward" / "Ada-map.json").exists()


def check_head(pixels: np.ndarray, plane: np.ndarray) -> None:
    assert pixels.shape == plane.shape
    assert np.median(pixels[plane == 0]) < 25 < np.median(pixels[plane > 100])


def test_no_value_of_a_header_left_the_client(hospital: Hospital) -> None:
    """In every byte to the node, in its streams, messages, headers, and in what PNGs and deflated data in them hold."""
    paths = {call.path.rpartition("/")[2] for call in hospital.traffic.calls}
    assert {"SubmitJob", "FetchResults", "AcknowledgeItems"} <= paths
    assert hospital.traffic.look(hospital.secrets) == []
    files = ("Ada-series/IM001", "Ada-volume.nii", "maps/ward/Ada-map.tif")
    for path in (hospital.given / name for name in files):
        assert look([Place("the file", path.read_bytes())], hospital.secrets), "the search would find them"

"""A series, a volume and a map through two real nodes: what comes out, and that no header left this machine."""

from __future__ import annotations

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

from ddib_fed.data.pictures import encode_png
from ddib_fed.engine.record import Translation
from ddib_fed.models.bundle import amend_bundle
from ddib_fed.models.manifest import PictureFormat
from tests.e2e.harness import Pair, ddib
from tests.formats.dicom.files import words_of, write_series
from tests.formats.maps import WHERE, write_map
from tests.formats.signers import read_mark, write_signer
from tests.security.tap.relay import Tap
from tests.security.tap.search import Place, Secrets, Traffic, look

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine"),
]

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

    pair: Pair
    given: Path
    out: Path
    slices: np.ndarray
    said: str
    again: str
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
        pair = Pair.create(folder, "brain-t2", domain="brain-t1")
        own = PictureFormat(intensity=RULE, slices="coronal")  # as if it was trained on volumes
        amend_bundle(folder / "north" / "model", picture=own)
        (given := folder / "given").mkdir()
        write_series(given / "Ada-series", slices.astype(int) * 4, PatientName=SECRET, PatientID=f"{SECRET}-id",
                     BurnedInAnnotation="NO")  # fmt: skip
        write_volume(given / "Ada-volume.nii", slices)
        (given / "maps" / "ward").mkdir(parents=True)
        write_map(given / "maps" / "ward" / "Ada-map.tif", slices[:1], owner=SECRET)
        pair.start()
        profile = pair.profile
        tap = Tap(pair.north.port, pair.north.config.paths.pki, profile.parent / "pki")
        profile.write_text(profile.read_text().replace(str(pair.north.port), str(tap.port)))
        try:
            words = ("translate", given / "Ada-series", given / "Ada-volume.nii", given / "maps",
                     "--to", "south.example/brain-t2", "--out", folder / "out", "--evaluations", 12, "--profile",
                     profile)  # fmt: skip
            said, again = ddib(*words), ddib(*words)
            (given / "plain.png").write_bytes(encode_png(slices[0][..., None]))
            ddib("translate", given / "plain.png", "--to", "south.example/brain-t2", "--out", folder / "out",
                 "--evaluations", 12, "--profile", profile, "--credentials", *write_signer(given))  # fmt: skip
        finally:
            pair.stop()
            tap.close()
        yield Hospital(
            pair, given, folder / "out", slices, said, again, header_secrets(given), Traffic(tap.calls)
        )


def test_a_derived_series_comes_out(hospital: Hospital) -> None:
    """In the place of the source, marked as synthetic, and a picture of the same head."""
    found = map(pydicom.dcmread, (hospital.given / "Ada-series").iterdir())
    sources = sorted(found, key=lambda dataset: dataset.InstanceNumber)
    made = [pydicom.dcmread(path) for path in sorted((hospital.out / "Ada-series" / "series-1").iterdir())]
    assert [m.ImagePositionPatient for m in made] == [s.ImagePositionPatient for s in sources]
    assert {m[0x0008001C].value for m in made} == {"YES"}
    assert {str(m.PatientName) for m in made} == {SECRET}
    assert {m.SOPInstanceUID for m in made}.isdisjoint({s.SOPInstanceUID for s in sources})
    for dataset, plane in zip(made, hospital.slices, strict=True):
        assert dataset.pixel_array.shape == (80, 80)
        background, inside = dataset.pixel_array[plane == 0], dataset.pixel_array[plane > 100]
        assert np.median(background) < 25 < np.median(inside)


def test_a_volume_comes_out(hospital: Hospital) -> None:
    """Of the same affine and shape, its empty slices empty, the same picture as the series."""
    made = nibabel.load(hospital.out / "Ada-volume.nii")
    np.testing.assert_allclose(made.affine, AFFINE)
    assert made.shape == nibabel.load(hospital.given / "Ada-volume.nii").shape
    canonical = np.asarray(nibabel.as_closest_canonical(made).dataobj)
    slices = canonical.transpose(1, 2, 0)[:, ::-1]
    assert not slices[3:].any()
    series = [
        pydicom.dcmread(path).pixel_array
        for path in sorted((hospital.out / "Ada-series" / "series-1").iterdir())
    ]
    difference = np.abs(slices[:3].astype(int) - np.stack(series))
    assert np.median(difference) < 12


def test_a_map_below_a_folder_comes_out(hospital: Hospital) -> None:
    """Where it was, under its path."""
    with rasterio.open(hospital.out / "ward" / "Ada-map.tif") as made:
        assert (made.crs, made.transform) == (rasterio.crs.CRS.from_epsg(32633), WHERE["transform"])
        pixels = made.read(1)
    plane = hospital.slices[0]
    assert np.median(pixels[plane == 0]) < 25 < np.median(pixels[plane > 100])
    assert (hospital.out / "ward" / "Ada-map.json").exists()


def test_no_value_of_a_header_left_the_client(hospital: Hospital) -> None:
    """In every byte to the node, in its streams, messages, headers, and in what PNGs and deflated data in them hold."""
    paths = {call.path.rpartition("/")[2] for call in hospital.traffic.calls}
    assert {"SubmitJob", "FetchResults", "AcknowledgeItems"} <= paths
    assert hospital.traffic.look(hospital.secrets) == []
    files = ("Ada-series/IM001", "Ada-volume.nii", "maps/ward/Ada-map.tif")
    for path in (hospital.given / name for name in files):
        assert look([Place("the file", path.read_bytes())], hospital.secrets), "the search would find them"


def test_a_picture_carries_content_credentials(hospital: Hospital) -> None:
    """The record's digest is that of the file as it lies there."""
    content = (hospital.out / "plain.png").read_bytes()
    found = read_mark(content)
    assert found is not None
    assert found["validation_state"] == "Valid"
    import hashlib

    record = Translation.read(hospital.out / "plain.json")
    assert record is not None
    assert record.files["translation"].sha256 == hashlib.sha256(content).hexdigest()

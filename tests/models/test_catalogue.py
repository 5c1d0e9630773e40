"""The models that ship are whole, small and listed; a copy appears whole or not at all."""

import pytest

from ddib_fed.errors import AlreadyExists, BundleInvalid
from ddib_fed.files import copy_folder
from ddib_fed.models import catalogue
from ddib_fed.models.bundle import pretrained, shipped_calibration
from ddib_fed.models.catalogue import copy_shipped, shipped_folder, shipped_names
from ddib_fed.models.manifest import DataNote, carried_domain
from ddib_fed.models.units import Normalisation


def test_only_a_model_is_replaced(tmp_path):
    """--force on a folder of something else would remove all of it; an empty one is no loss."""
    (tmp_path / "work").mkdir()
    copy_shipped("moons", tmp_path / "work", overwrite=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.tex").write_text("mine")
    (tmp_path / "notes").write_text("mine")
    for name in ("thesis", "notes"):
        with pytest.raises(AlreadyExists, match=name):
            copy_shipped("moons", tmp_path / name, overwrite=True)
    assert (tmp_path / "thesis" / "chapter-1.tex").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["notes", "thesis", "work"]


@pytest.mark.parametrize("fault", ["damaged", "stopped"])
def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch, fault):
    """Weights that are not those of the manifest, or an interruption after the last file."""
    shipped = tmp_path / "shipped"
    copy_folder(shipped_folder() / "moons", shipped / "moons")
    monkeypatch.setattr(catalogue, "shipped_folder", lambda: shipped)
    if fault == "damaged":
        with (shipped / "moons" / "model.safetensors").open("r+b") as file:
            file.seek(5_000)
            file.write(b"\xff")
        expected = BundleInvalid
    else:
        monkeypatch.setattr(catalogue, "look", lambda staging, name: 1 / 0)
        expected = ZeroDivisionError
    with pytest.raises(expected):
        copy_shipped("moons", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["shipped"]


@pytest.mark.parametrize("domain", shipped_names())
def test_shipped_models_verify_and_are_small(domain):
    """Each is whole, with at most 5 MB of weights; a calibration lies beside the model that was trained with it."""
    bundle = pretrained(domain)
    assert carried_domain(bundle.manifest) == bundle.manifest.domain
    assert bundle.manifest.domain == domain.split("-as-")[0]
    calibrated = bundle.manifest.normalisation.calibrated
    assert (shipped_calibration(domain) is None) == (calibrated is None)
    files = [file for file in (shipped_folder() / domain).iterdir() if file.name.endswith(".safetensors")]
    assert sum(len(file.read_bytes()) for file in files) < 5_000_000


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("moons", {"normalisation": Normalisation(mean=0.1)}),
        ("relief", {"data": None}),
        ("relief", {"data": DataNote(source="400 pictures of a user's folder, 40 held out")}),
        ("relief", {"name": "satellite", "domain": "satellite"}),
    ],
)
def test_a_name_alone_is_no_proof(name: str, changes: dict) -> None:
    """Units, shape and data have to be those of the domain."""
    assert carried_domain(pretrained(name).manifest.model_copy(update=changes)) is None

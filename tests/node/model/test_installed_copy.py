"""What is installed is a verified copy, and may have to be signed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ddib_fed.errors import BundleInvalid
from ddib_fed.models.allowances import Allowances, PictureAllowances
from ddib_fed.models.bundle import load_bundle, make_bundle, save_bundle
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model import library
from ddib_fed.node.model.hosted import load_classifier, load_hosted
from ddib_fed.trust.certificates import Authority
from ddib_fed.trust.signed_bundles import sign_bundle
from tests.node.model.other import other_bundle
from tests.node.picture_examples import SIZE, pictures_model
from tests.node.tiny_nodes import (
    make_institution,
)
from tests.runs.tiny_models import tiny_classifier


@pytest.fixture
def strict(config: NodeConfig) -> tuple[NodeConfig, Authority]:
    """The node with `[model] signed = true`, and the root whose signature it wants."""
    institution = make_institution(config.folder, "north.example")
    text = config.path.read_text().replace("# signed = false", "signed = true")
    config.path.write_text(text)
    return NodeConfig.load(config.path), institution.authority


def test_a_node_can_demand_that_its_institution_has_signed(
    strict: tuple[NodeConfig, Authority], tmp_path: Path
) -> None:
    """Neither served nor installed otherwise."""
    config, authority = strict
    bundle = other_bundle(tmp_path / "new")
    with pytest.raises(BundleInvalid, match="not signed"):
        load_hosted(config)
    with pytest.raises(BundleInvalid, match="not signed"):
        library.install(config, bundle)
    for folder in (bundle, config.paths.bundle):
        sign_bundle(folder, authority)
    load_hosted(config)
    library.choose(config, library.install(config, bundle))
    assert load_hosted(config).manifest.name == "other"


def measured(folder: Path, bound: float) -> None:
    """Beside the weights, what changes no digest: bounds of the gate."""
    pictures = PictureAllowances(names=("mean",), low=(-bound,), high=(bound,))
    weights = load_bundle(folder).manifest.weights_sha256
    made = Allowances(
        weights_sha256=weights, soften_sigma=0.0, measured=1, checked=0, beyond=0, pictures=pictures
    )
    (folder / "gate.json").write_bytes(made.text())


def test_the_copy_is_verified_and_not_what_it_was_made_of(
    strict: tuple[NodeConfig, Authority], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody changes the folder after it was looked at: nothing is installed, and nothing is left behind."""
    config, authority = strict
    bundle, copy = other_bundle(tmp_path / "new"), library.copy_folder
    sign_bundle(bundle, authority)

    def changed_meanwhile(source: Path, to: Path) -> None:
        (source / "notes.json").write_text("{}")
        copy(source, to)

    monkeypatch.setattr(library, "copy_folder", changed_meanwhile)
    with pytest.raises(BundleInvalid, match=r"notes\.json changed after it was signed"):
        library.install(config, bundle)

    def another_meanwhile(source: Path, to: Path) -> None:
        shutil.rmtree(source)
        sign_bundle(other_bundle(source, answer=0.1), authority)
        copy(source, to)

    (bundle / "notes.json").unlink()
    monkeypatch.setattr(library, "copy_folder", another_meanwhile)
    with pytest.raises(BundleInvalid, match="changed while it was copied"):
        library.install(config, bundle)
    assert list(config.paths.models.iterdir()) == []


def test_a_model_that_is_installed_again_brings_its_side_files(
    strict: tuple[NodeConfig, Authority], tmp_path: Path
) -> None:
    """They change no digest: the bounds of before would judge, under a signature over other files."""
    config, authority = strict
    bundle = other_bundle(tmp_path / "new")
    sign_bundle(bundle, authority)
    place = config.paths.models / library.install(config, bundle)
    before = place.stat().st_ino
    library.install(config, bundle)
    assert place.stat().st_ino == before, "the same again is left as it is"
    measured(bundle, 0.5)
    sign_bundle(bundle, authority)
    digest = library.install(config, bundle)
    assert (place / "gate.json").read_bytes() == (bundle / "gate.json").read_bytes()
    assert library.installed(config) == [digest]
    library.choose(config, digest)
    load_hosted(config)
    (place / "gate.json").write_text("{}")
    with pytest.raises(BundleInvalid, match=r"gate\.json changed after it was signed"):
        load_hosted(config)
    library.install(config, bundle)
    load_hosted(config)


def test_the_classifier_must_be_signed_too(strict: tuple[NodeConfig, Authority], tmp_path: Path) -> None:
    """It steers what is given out; without the demand it needs no signature."""
    config, authority = strict
    text = config.path.read_text().replace('# classifier = "classifier"', 'classifier = "guide"')
    config.path.write_text(text)
    config = NodeConfig.load(config.path)
    guide = tiny_classifier(size=SIZE, normalisation=Normalisation(std=0.5))
    folder = config.folder / "guide"
    save_bundle(folder, guide.manifest, guide.state)
    pictures = make_bundle(*pictures_model("scans", seed=1))
    with pytest.raises(BundleInvalid, match="guide: it is not signed"):
        load_classifier(config, pictures)
    sign_bundle(folder, authority)
    found = load_classifier(config, pictures)
    assert found is not None
    assert found.digest == guide.digest

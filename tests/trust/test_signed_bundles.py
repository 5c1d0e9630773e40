"""Bundles that an institution's root has signed: exactly these files, by exactly this root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddib_fed.errors import BundleInvalid, ModelNotFound
from ddib_fed.trust import rollover
from ddib_fed.trust.signed_bundles import SIGNATURE_FILE, sign_bundle, verify_bundle
from tests.node.institutions import Institution


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("manifest.json", "model.safetensors", "steps.json"):
        (folder / name).write_bytes(name.encode())
    return folder


def roots(institution: Institution) -> tuple:
    return institution.store.snapshot().own_roots


def test_a_signed_bundle_is_verified_with_the_root_alone(north: Institution, bundle: Path) -> None:
    """The key may be anywhere; every file is named."""
    made = sign_bundle(bundle, north.authority)
    (north.pki / "ca.key").unlink()
    assert verify_bundle(bundle, roots(north), "north.example") == made
    assert sorted(made.files) == ["manifest.json", "model.safetensors", "steps.json"]


@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_files_that_are_not_the_signed_ones_are_refused(
    north: Institution, bundle: Path, change: str
) -> None:
    """Another byte, another file, one file less: the file is named."""
    sign_bundle(bundle, north.authority)
    if change == "removed":
        (bundle / "steps.json").unlink()
    else:
        (bundle / ("steps.json" if change == "changed" else "more.json")).write_bytes(b"x")
    with pytest.raises(BundleInvalid, match=r"(steps|more)\.json"):
        verify_bundle(bundle, roots(north), "north.example")


def test_another_institutions_signature_is_not_ours(north: Institution, bundle: Path, tmp_path: Path) -> None:
    """Nor is one of a root that calls itself north."""
    south, forger = Institution("south.example", tmp_path / "s"), Institution("north.example", tmp_path / "f")
    for other in (south, forger):
        sign_bundle(bundle, other.authority)
        with pytest.raises(BundleInvalid):
            verify_bundle(bundle, roots(north), "north.example")


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "AAAA"},
        {"signature": "not base64 ü"},
        {"signed_at": "2020-01-01T00:00:00+00:00"},
        {"format_version": 2},
        {"more": 1},
    ],
    ids=str,
)
def test_a_statement_that_was_changed_is_refused(north: Institution, bundle: Path, change: dict) -> None:
    """Every field is under the signature."""
    sign_bundle(bundle, north.authority)
    content = json.loads((bundle / SIGNATURE_FILE).read_bytes())
    place = content if change.keys() <= content.keys() else content["statement"]
    place.update(change)
    (bundle / SIGNATURE_FILE).write_text(json.dumps(content))
    with pytest.raises(BundleInvalid):
        verify_bundle(bundle, roots(north), "north.example")


def test_what_is_not_signed_says_so(north: Institution, bundle: Path, tmp_path: Path) -> None:
    """And what is not there."""
    with pytest.raises(BundleInvalid, match="not signed"):
        verify_bundle(bundle, roots(north), "north.example")
    (bundle / SIGNATURE_FILE).write_bytes(b"\xff")
    with pytest.raises(BundleInvalid, match="cannot be read"):
        verify_bundle(bundle, roots(north), "north.example")
    with pytest.raises(ModelNotFound):
        sign_bundle(tmp_path / "nowhere", north.authority)


def test_a_bundle_is_signed_again_for_a_new_root(north: Institution, bundle: Path) -> None:
    """Good while both roots are trusted, and no longer when the roll-over is finished."""
    sign_bundle(bundle, north.authority)
    rollover.start(north.pki)
    verify_bundle(bundle, roots(north), "north.example")
    new = rollover.switch(north.pki)
    rollover.finish(north.pki)
    with pytest.raises(BundleInvalid, match="another root"):
        verify_bundle(bundle, roots(north), "north.example")
    sign_bundle(bundle, new)
    verify_bundle(bundle, roots(north), "north.example")

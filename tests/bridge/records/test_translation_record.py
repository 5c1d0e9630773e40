"""Records of translations: what earlier releases wrote is read, and what cannot be used counts as not known."""

from __future__ import annotations

import json

import pytest

from ddib_fed.bridge.records.translation_record import Part, PictureFigures, Translation, file_name

STATISTICS = {"mean": 0.01, "std": 0.99, "kurtosis": 0.1, "correlation": 0.1, "count": 256}
# As the job databases of the first release have them.
ROW = {
    "source_institution": "north.example", "target_institution": "south.example", "source_domain": "scans",
    "target_domain": "relief", "contract_sha256": "c" * 64, "source_model_sha256": "a" * 64,
    "target_model_sha256": "b" * 64, "soften_sigma": 0.02, "input_sha256": "d" * 64, "latent_sha256": "e" * 64,
    "latent": STATISTICS, "samples": 1, "seconds": {"encode": 1.0}, "wire_bytes": 0, "size_rule": "pad",
    "encoded_at": 1.0,
}  # fmt: skip
PICTURE = {
    "height": 48, "width": 32, "size_rule": "pad", "terms": {"low": -1000.0, "high": 2000.0, "bits": 16}, "slope": 1.0,
    "intercept": -1000.0, "edge_correlation": 0.5, "mutual_information": 1.0, "clipped": 3, "cycle_psnr": 41.0,
}  # fmt: skip
# As `ddib bridge` of the first release wrote them.
BRIDGE = {
    "source": "sub/ct.tif", "translated": "sub/ct.png", "back": "sub/ct_back.png", "picture_digest": "f" * 64,
    "size": [48, 32], "classes": {"source": 1, "target": None}, "output_scale": {"slope": 2.0, "intercept": -5.0},
    "back_scale": {"slope": 1.0, "intercept": 0.0}, "ranges": {"source": [0, 255], "target": [-1000, 2000]},
    "settings": {"solver": "ddim", "order": 1, "evaluations": 12, "grid": "default", "depth": 0.5, "soften": 0.02},
    "models": {"source": {"name": "a", "domain": "scans", "digest": "a" * 64}, "target": {"domain": "relief"}},
    "request": "9" * 64, "cycle_mse": 1e-4, "cycle_psnr": 40.0, "range": {"clipped": 2, "outside": 0.1, "used": 0.9},
    "structure": {"edge_correlation": 0.3, "mutual_information": 0.7, "doubtful": True}, "chance": None,
    "latent": {"mean": 0.0, "std": 1.0, "kurtosis": 0.0, "correlation": 0.1},
    "files": {"sub/ct.png": "1" * 64, "sub/ct_back.png": "2" * 64, "sub/ct_latent.npy": "3" * 64},
}  # fmt: skip


def parsed(values: object) -> Translation:
    found = Translation.parse(values)
    assert found is not None
    return found


def test_a_row_of_an_item_that_was_encoded_by_the_release_before_is_read() -> None:
    """Its size rule is what the answer's picture is restored by; of points there is no picture."""
    found = parsed(ROW)
    assert found.picture is not None
    assert (found.picture.size_rule, found.latent.std, found.seconds) == ("pad", 0.99, {"encode": 1.0})
    assert parsed(ROW | {"size_rule": "none"}).picture is None


def test_a_row_of_a_decoded_picture_of_the_release_before_is_read() -> None:
    """Its terms were a mapping of their own."""
    picture = parsed(ROW | {"picture": PICTURE}).picture
    assert picture is not None
    assert (picture.low, picture.high, picture.bits, picture.clipped) == (-1000.0, 2000.0, 16, 3)
    assert (picture.target_range, picture.source_range, picture.back_scale) == ((-1000.0, 2000.0), None, None)


def test_a_record_of_ddib_bridge_of_the_release_before_is_read() -> None:
    """Every figure, both ranges and scales, and its files by what they are, under their old names."""
    found = parsed(BRIDGE)
    assert {kind: file.file for kind, file in found.files.items()} == {
        "translation": "ct.png", "returned": "ct_back.png", "latent": "ct_latent.npy",
    }  # fmt: skip
    picture = found.picture
    assert picture is not None
    assert (picture.height, picture.width, picture.output_scale, picture.back_scale) == (
        48,
        32,
        (2.0, -5.0),
        (1.0, 0.0),
    )
    assert (picture.source_range, picture.target_range) == ((0.0, 255.0), (-1000.0, 2000.0))
    assert (picture.edge_correlation, picture.cycle_psnr, picture.clipped, picture.used) == (
        0.3,
        40.0,
        2,
        0.9,
    )
    assert (found.solver.solver, found.solver.depth, found.soften_sigma) == ("ddim", 0.5, 0.02)
    assert (found.source_class, found.target_class, found.doubtful, found.doubts) == (
        "1",
        "",
        True,
        ("structure",),
    )


@pytest.mark.parametrize(
    ("damage", "known"),
    [({"picture": {**PICTURE, "cycle_psnr": "good"}}, 48), ({"picture": 7}, None), ({"latent": []}, None)],
)
def test_what_cannot_be_used_counts_as_not_known(damage, known) -> None:
    """One bad field costs that field."""
    found = parsed(ROW | damage)
    assert found.input_sha256 == "d" * 64
    assert (found.picture.height or None if found.picture else None) == known
    assert found.picture is None or found.picture.cycle_psnr is None


def test_a_record_comes_back_as_it_was_written() -> None:
    figures = PictureFigures(height=4, width=5, size_rule="crop", low=0.0, high=1.0, cycle_psnr=29.0)
    record = Translation(input="ct.tif", picture=figures, seconds={"encode": 0.5}).judged()
    assert record.doubts == ("cycle_psnr",)
    assert Translation.parse(json.loads(record.to_json())) == record


@pytest.mark.parametrize("raw", [None, [], "text", {}, {"unknown": 1}])
def test_what_is_no_record_is_none(raw) -> None:
    assert Translation.parse(raw) is None


def test_one_set_of_names() -> None:
    assert [file_name("ct", part, ".png") for part in (Part.TRANSLATION, Part.RETURNED)] == [
        "ct.png",
        "ct.returned.png",
    ]
    assert file_name("ct", Part.LATENT, ".npy") == "ct.latent.npy"

"""Pictures between two real processes: what comes back and what is refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import ImageTooLarge, ImageUnreadable, JobFailed, PictureMisfit, SettingsInvalid
from ddib_fed.models.manifest import PictureFormat, StructureThresholds
from ddib_fed.protocol.messages import Settings
from tests.e2e.harness import Pair, ddib
from tests.e2e.translation.test_translate import npy
from tests.node.picture_examples import (
    SIZE,
    Files,
    chunks,
    noise,
    png_bytes,
    save_pictures_model,
    write_files,
)

pytestmark = pytest.mark.e2e

TARGET = "south.example/relief"
QUICK = Settings(evaluations=12)
CT = PictureFormat(low=-1000.0, high=2000.0, bits=16)
LEAST = StructureThresholds(
    edge_correlation=0.25, mutual_information=0.5, chance_edge_correlation=0.0, chance_mutual_information=0.4,
    quantile=0.95, count=100, basis="chance",
)  # fmt: skip


@dataclass
class Studio:
    """A running pair of picture nodes, and one translation of four files."""

    pair: Pair
    files: Files
    out: Path

    def translate(self, *words: object, out: Path) -> str:
        return ddib("translate", *self.files.paths, "--to", TARGET, "--target-class", "ridge", "--evaluations", 12,
                    "--out", out, "--profile", self.pair.profile, *words)  # fmt: skip

    def record(self, name: str) -> dict:
        return json.loads((self.out / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    """North's 8-bit scans become south's 16-bit relief, of one of two classes."""
    with tempfile.TemporaryDirectory(prefix="ddib-pictures-") as name:
        folder = Path(name)
        pair = Pair.create(folder, "relief", domain="scans", pretrained=False)
        save_pictures_model(pair.north.folder / "model", "scans", seed=1, structure=LEAST)
        save_pictures_model(
            pair.south.folder / "model", "relief", seed=2, classes=("coast", "ridge"), form=CT
        )
        pair.north.edit("# max_pixels = 89000000 ", "max_pixels = 5000 ")
        for node, least in ((pair.north, 0.2), (pair.south, 0.5)):
            node.edit("# least_depth = 1.0 ", f"least_depth = {least} ")
        (folder / "in").mkdir()
        made = Studio(pair, write_files(folder / "in"), folder / "out")
        try:
            pair.start()
            made.translate("--cycle", "--keep-latents", out=made.out)
            yield made
        finally:
            pair.stop()


def test_pictures_come_back_at_their_own_size_and_as_deep_as_the_target(studio: Studio) -> None:
    """PNG, JPEG, 16-bit TIFF and .npy become PNGs of 16 bits under their names, as large as they were."""
    for name, size in studio.files.sizes.items():
        content = (studio.out / f"{name}.png").read_bytes()
        picture = decode_image(content)
        assert picture.pixels.shape == (*size, 1)
        assert picture.bits == 16
        assert set(chunks(content)) == {b"IHDR", b"IDAT", b"IEND"}
        assert studio.record(name)["input"].startswith(name)


def test_a_round_trip_is_the_picture_again_in_the_sources_bits(studio: Studio) -> None:
    """And its PSNR is recorded; what is written differs from the original by that and the rounding to 8 bits."""
    assert studio.record("Ada-png")["picture"]["cycle_psnr"] > 35
    for name in ("Ada-png", "Ada-jpeg"):
        back = decode_image((studio.out / f"{name}.returned.png").read_bytes())
        assert (back.bits, back.pixels.shape[:2]) == (8, studio.files.sizes[name])
    original, returned = studio.files.pixels["Ada-png"] / 127.5 - 1, back_of(studio, "Ada-png")
    mse = np.mean((original - returned) ** 2)
    recorded, rounding = studio.record("Ada-png")["picture"]["cycle_mse"], (2 / 255) ** 2 / 12
    scatter = 2 * np.sqrt(recorded * rounding / original.size)
    assert mse == pytest.approx(recorded + rounding, abs=6 * scatter)


def back_of(studio: Studio, name: str) -> np.ndarray:
    return decode_image((studio.out / f"{name}.returned.png").read_bytes()).pixels[..., 0] / 127.5 - 1


def test_the_record_says_what_was_done(studio: Studio) -> None:
    """Size rule, the target's units, softening, class, and how the structure was kept."""
    record = studio.record("Ada-tiff")
    picture = record["picture"]
    assert (picture["height"], picture["width"], picture["size_rule"]) == (32, 64, "resize")
    assert (picture["low"], picture["high"], picture["bits"]) == (-1000, 2000, 16)
    assert picture["intercept"] == -1000
    assert picture["slope"] == pytest.approx(3000 / 65535)
    assert (record["soften_sigma"], record["target_class"]) == (0.02, "ridge")
    assert picture["edge_correlation"] > 0.5
    assert (picture["least_edge_correlation"], picture["least_mutual_information"]) == (0.25, 0.5)
    assert picture["structure_doubtful"] is False
    assert (record["doubtful"], record["doubts"]) == (True, ["cycle_psnr"])  # for what the fit lost
    assert picture["mutual_information"] > 0.5
    assert record["samples"] == 1


def test_the_same_request_softens_with_the_same_noise(studio: Studio, tmp_path: Path) -> None:
    """Although the picture was softened, its latent is the same to 1e-5, and so is the result."""
    studio.translate("--keep-latents", out=tmp_path)
    for name in studio.files.sizes:
        first, again = (np.load(folder / f"{name}.latent.npy") for folder in (studio.out, tmp_path))
        assert first.shape == (1, 1, SIZE, SIZE)
        np.testing.assert_allclose(first, again, atol=1e-5)
        one, two = (decode_image((f / f"{name}.png").read_bytes()).pixels for f in (studio.out, tmp_path))
        assert np.abs(one.astype(int) - two).max() <= 2


def test_another_class_is_another_translation(studio: Studio) -> None:
    """By name or by index; a class that the target does not have is named with those that it has."""
    picture = png_bytes(noise(seed=9))
    with studio.pair.client() as client:
        coast, again, ridge = (
            client.translate([picture], TARGET, QUICK, target_class=asked)[0].translation.data
            for asked in ("coast", "0", "1")
        )
        assert coast == again
        assert coast != ridge
        with pytest.raises(SettingsInvalid) as caught:
            client.submit([picture], TARGET, QUICK, target_class="valley")
        assert caught.value.facts["classes"] == "coast, ridge"
        with pytest.raises(SettingsInvalid):
            client.submit([picture], TARGET, QUICK, target_class="ridge", source_class="0")
        with pytest.raises(JobFailed) as failed:
            client.translate([picture], TARGET, QUICK)
        assert "SETTINGS_INVALID" in failed.value.detail


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (png_bytes(noise(seed=5))[:-20], ImageUnreadable),
        (png_bytes(noise(100, 100)), ImageTooLarge),
        (b"\xff\xd8\xff" + bytes(100), ImageUnreadable),
        (npy(np.random.default_rng(5).random((SIZE, SIZE), np.float32)), PictureMisfit),
        (npy(np.random.default_rng(5).integers(0, 65_536, (SIZE, SIZE), np.uint16)), PictureMisfit),
    ],
    ids=["torn", "large", "no JPEG", "floats of 0 to 1", "16 bits"],
)
def test_a_bad_picture_is_named_and_the_node_lives_on(studio: Studio, content: bytes, error: type) -> None:
    """Refused with its own error and the item's number before the job is accepted."""
    good = png_bytes(noise(seed=6))
    with studio.pair.client() as client:
        with pytest.raises(error) as caught:
            client.submit([good, content], TARGET, target_class="ridge")
        assert caught.value.facts["item"] == "1"
        assert client.translate([good], TARGET, QUICK, target_class="ridge")

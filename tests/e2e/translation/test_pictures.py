"""Pictures between two real processes: what comes back and what is refused."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from ddib_fed import Request
from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import ImageTooLarge, ImageUnreadable, PictureMisfit
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.record import Settings
from ddib_fed.testing import TwoNodes, ddib
from tests.client.scripted_source import npy
from tests.data_modules.picture_examples import chunks
from tests.e2e.harness import two_nodes
from tests.node.picture_examples import SIZE, noise, png_bytes, save_pictures_model, write_files

pytestmark = pytest.mark.e2e

TARGET = "south.example/relief"
CT = PictureFormat(low=-1000.0, high=2000.0, bits=16)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """North's 8-bit scans become south's 16-bit relief, of one of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    save_pictures_model(folder / "scans", "scans", seed=1)
    save_pictures_model(folder / "relief", "relief", seed=2, classes=("coast", "ridge"), form=CT)
    made = two_nodes(folder, folder / "scans", folder / "relief")
    made.source.configure({"max_pixels": 5_000})
    with made:
        yield made


def test_pictures_come_there_and_back_at_their_own_size_and_as_deep_as_each_side(pair, tmp_path):
    """PNG, JPEG, 16-bit TIFF and .npy become PNGs of 16 bits; back, what was lost is recorded, but for rounding."""
    files, out = write_files(tmp_path), tmp_path / "out"
    ddib("translate", *files.paths, "--to", TARGET, "--target-class", "ridge", "--evaluations", 12, "--cycle",
         "--out", out, "--profile", pair.profile)  # fmt: skip
    for name, size in files.sizes.items():
        content = (out / f"{name}.png").read_bytes()
        picture = decode_image(content)
        assert (picture.pixels.shape, picture.bits) == ((*size, 1), 16)
        assert set(chunks(content)) == {b"IHDR", b"IDAT", b"IEND"}
    back = decode_image((out / "Ada-png.returned.png").read_bytes())
    assert (back.bits, back.pixels.shape[:2]) == (8, files.sizes["Ada-png"])
    record = json.loads((out / "Ada-png.json").read_text())["picture"]
    assert record["cycle_psnr"] > 35
    original, returned = (each / 127.5 - 1 for each in (files.pixels["Ada-png"], back.pixels[..., 0]))
    recorded, rounding = record["cycle_mse"], (2 / 255) ** 2 / 12
    scatter = 2 * np.sqrt(recorded * rounding / original.size)
    assert np.mean((original - returned) ** 2) == pytest.approx(recorded + rounding, abs=6 * scatter)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (png_bytes(noise(seed=5))[:-20], ImageUnreadable),
        (png_bytes(noise(100, 100)), ImageTooLarge),
        (npy(np.random.default_rng(5).random((SIZE, SIZE), np.float32)), PictureMisfit),
    ],
    ids=["torn", "large", "floats of 0 to 1"],
)
def test_a_bad_picture_is_named_and_the_node_lives_on(pair: TwoNodes, content: bytes, error: type) -> None:
    good = png_bytes(noise(seed=6))
    with pair.client() as client:
        with pytest.raises(error) as caught:
            client.submit([good, content], TARGET, Request(target_class="ridge"))
        assert caught.value.facts["item"] == "1"
        assert [*client.translate([good], TARGET, Request(Settings(evaluations=12), target_class="ridge"))]

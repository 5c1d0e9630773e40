"""Volumes as samples of a model, in and out."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from ddib_fed.data.pictures import ImageLimits, decode_volume, encode_png
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Decoded
from ddib_fed.errors import ImageUnreadable, PictureMisfit, ShapeMismatch
from ddib_fed.evaluation.samples import REFUSE, VolumeSamples, samples_of
from ddib_fed.metrics import file_rule
from ddib_fed.models.manifest import PictureFormat
from tests.engine.latent_models import autoencoder, latent_model
from tests.node.volume_examples import SIDES, npy, volume_model, voxels


def samples(form: PictureFormat | None = None, limits: ImageLimits | None = None, **options) -> VolumeSamples:
    found = samples_of(DomainModel(volume_model("heads", form=form, **options)), limits or ImageLimits(), 0)
    assert isinstance(found, VolumeSamples)
    return found


@pytest.mark.parametrize("dtype", ["u1", "<f8", ">f4", "i2"])
def test_a_volume_is_read_in_the_range_of_the_model(dtype: str) -> None:
    """Whatever its type and the order of its axes in the file; the record has its size and that nothing was fitted."""
    given = voxels()
    for array in (
        given.astype(dtype),
        np.asfortranarray(given.astype(dtype)),
        given[..., None].astype(dtype),
    ):
        read = samples().read(npy(array), REFUSE)
        assert read.samples.shape == (1, 1, *SIDES)
        np.testing.assert_allclose(read.samples[0, 0], given / 127.5 - 1, atol=1e-6)
        assert read.picture is not None
        assert (read.picture.depth, read.picture.height, read.picture.width) == SIDES
        assert (read.picture.size_rule, read.picture.clipped, read.is_fitted) == (REFUSE, 0, False)


@pytest.mark.parametrize(
    ("form", "scale", "dtype"),
    [
        (PictureFormat(), (1.0, 0.0), np.uint8),
        (PictureFormat(low=-1000, high=2000, bits=16), (3000 / 65535, -1000.0), np.uint16),
    ],
)
def test_a_result_has_the_volumes_shape_the_rules_bits_and_the_scale_that_the_record_says(form, scale, dtype):
    there, model = samples(form), DomainModel(volume_model("heads", form=form))
    raw = (voxels().astype(np.float32) / 255 * (form.high - form.low) + form.low).astype(np.float32)
    given = there.read(npy(raw), REFUSE)
    rule = file_rule(model.manifest)
    back = there.answer(there.file(given.samples), rule, 1)
    made = there.translation(back, rule, given)
    numbers = decode_volume(made.file)
    assert (numbers.shape, numbers.dtype) == ((*SIDES, 1), dtype)
    figures = made.figures["picture"]
    assert (figures["slope"], figures["intercept"]) == pytest.approx(scale)
    np.testing.assert_allclose(numbers[..., 0] * scale[0] + scale[1], raw, atol=0.51 * max(scale[0], 1))
    assert figures["edge_correlation"] == pytest.approx(1.0, abs=1e-3)
    figures = there.returned(given, Decoded(0, back, None, 0.0)).figures["picture"]
    assert figures["cycle_psnr"] > 50


def test_behind_an_autoencoder_the_record_says_what_it_alone_loses() -> None:
    model = DomainModel(latent_model(encoder=autoencoder(dims=3, size=16), size=16))
    there = samples_of(model, ImageLimits(), 0)
    given = there.read(npy(voxels(sides=(16, 16, 16))), REFUSE)
    figures = there.returned(given, Decoded(0, given.samples, None, 0.0)).figures["picture"]
    alone = model.out_of_units(model.into_units(given.samples)).clip(-1, 1)
    wanted = 10 * np.log10(4 / np.square(alone - given.samples).mean())
    assert figures["autoencoder_psnr"] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (npy(np.zeros((16, 16, 16), np.uint8)), ShapeMismatch, "16 x 16 x 16 voxels where 12 x 16 x 8 alone"),
        (npy(np.zeros((192, 8), np.uint8)), ImageUnreadable, r"\(192, 8\) is not one volume"),
        (npy(np.zeros((*SIDES, 2), np.uint8)), ImageUnreadable, "is not one volume"),
        (npy(voxels())[:-9], ImageUnreadable, "asks for 1536 bytes"),
        (npy(np.full(SIDES, np.nan)), ImageUnreadable, "NaN or infinite"),
        (npy(voxels() / 255.0), PictureMisfit, "another scale"),
        (encode_png(np.zeros((16, 8, 1), np.uint8)), ImageUnreadable, "does not begin as a .npy"),
    ],
)
def test_what_is_no_volume_of_the_model_is_refused(content: bytes, error: type, said: str) -> None:
    there = samples()
    with pytest.raises(error, match=said):
        there.read(content, REFUSE)
    assert there.memory(content) in {0, there.memory(npy(voxels()))}


@pytest.mark.parametrize(
    "numbers",
    [
        voxels().astype(np.uint16),
        voxels().astype(np.int8),
        voxels(sides=(16, 12, 8)),
        np.repeat(voxels()[..., None], 3, 3),
    ],
)
def test_an_answer_of_another_type_or_shape_is_the_peers_fault(numbers: np.ndarray) -> None:
    there = samples()
    with pytest.raises(ShapeMismatch):
        there.answer(npy(numbers), file_rule(volume_model("heads").manifest), 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["u1", "f8"])
def test_what_a_volume_takes_is_known_before_it_is_read(dtype: str) -> None:
    sides = (64, 96, 80)
    there = samples(sides=sides, form=PictureFormat(low=5, high=250, bits=16))
    content = npy(np.asfortranarray(voxels(sides=sides).astype(dtype)))
    rule = file_rule(volume_model("heads", sides=sides).manifest)

    def peak(work: Callable[[], object]) -> tuple[int, object]:
        tracemalloc.start()
        try:
            return (done := work()) and (tracemalloc.get_traced_memory()[1], done)
        finally:
            tracemalloc.stop()

    need, given = peak(lambda: there.read(content, REFUSE))
    assert 0.4 * there.memory(content) < need < there.memory(content)
    for work in (
        lambda: there.translation(given.samples, rule, given),
        lambda: there.returned(given, Decoded(0, given.samples, None, 0.0)),
    ):
        assert 0.4 * there.output_memory(given) < peak(work)[0] < there.output_memory(given)

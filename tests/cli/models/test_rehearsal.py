"""Two folders become two models, translations both ways and one page; what was stopped goes on."""

from dataclasses import replace

import numpy as np
import pytest

from ddib_fed import Rehearsal
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import DdibError, StateConflict, UsageError
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training.config import TrainConfig
from tests.training.examples import blobs

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(
    kind="pictures", size=8,
    network={"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "patch": 1, "spectral": True},
    batch=8, steps=6, warmup=2, checkpoint_every=3, samples=2, soften_sigma=0.02, held_out=0.3,
)  # fmt: skip


class StoppedError(Exception):
    """What stands for a kill."""


@pytest.fixture
def two(tmp_path):
    """Grey spots, bright on dark and dark on bright; one picture is in both folders."""
    for folder, seed, flipped in (("bright", 1, False), ("dark", 2, True)):
        (tmp_path / folder).mkdir()
        for number, picture in enumerate(blobs(24, seed, channels=1)):
            pixels = np.ascontiguousarray(picture.transpose(1, 2, 0))
            path = tmp_path / folder / f"{number:02d}.png"
            path.write_bytes(encode_png(255 - pixels if flipped else pixels))
    (tmp_path / "dark" / "stray.png").write_bytes((tmp_path / "bright" / "00.png").read_bytes())
    return tmp_path


def wanted(two):
    return Rehearsal(two / "bright", two / "dark", two / "out", CONFIG, pictures=5, evaluations=12)


def stop_at(part, step):
    """What stops a rehearsal at a step of one of its parts."""

    def on_progress(what, done, total, remark):
        if what.startswith(part) and done >= step:
            raise StoppedError

    return on_progress


def test_a_rehearsal_ends_with_a_page_two_models_and_results_both_ways(two):
    """Another one is not mixed into its folder; told to start again, it removes what is there."""
    said = []
    page, _ = wanted(two).run(say=said.append)
    text = page.read_text(encoding="utf-8")
    for part in ("bright to dark", "dark to bright", "What to try next", "1 pictures are in both folders"):
        assert part in text
    assert not [scheme for scheme in ("http:", "https:") if scheme in text]
    assert load_bundle(two / "out" / "a").manifest.domain == "bright"
    assert load_bundle(two / "out" / "b").manifest.soften_sigma == 0.02
    assert (two / "out" / "b-to-a" / "report.html").exists()
    assert "held-out pictures, their translations, and what came back" in text
    assert any("24 pictures, 0 left out" in line for line in said)

    other = replace(wanted(two), config=CONFIG.model_copy(update={"seed": 1}))
    with pytest.raises(StateConflict):
        other.run()
    with pytest.raises(StoppedError):
        other.run(force=True, on_progress=stop_at("training bright", 1))
    assert not (two / "out" / "a" / "manifest.json").exists()


def mixed(folder):
    """Write a folder with two pictures of 16 bits among those of 8."""
    for name in ("03", "07"):
        (folder / f"{name}.png").write_bytes(encode_png(np.full((8, 8, 1), 40_000, np.uint16)))


def few(folder):
    for path in sorted(folder.iterdir())[5:]:
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "says", "hint"),
    [(mixed, r"03.png: uint16\n", "mogrify -depth 8"), (few, "at least 8", "add pictures")],
)
def test_a_second_folder_that_cannot_be_trained_on_is_refused_before_the_first_is(two, spoil, says, hint):
    spoil(two / "dark")
    with pytest.raises(DdibError, match=says) as caught:
        wanted(two).run()
    assert hint in str(caught.value.hint)
    assert not (two / "out" / "a").exists()


def test_what_was_stopped_goes_on_and_what_is_finished_is_left(two):
    """Killed in the second training, and once more while translating, it does only what is missing."""

    for part in ("training dark", "translating dark"):
        with pytest.raises(StoppedError):
            wanted(two).run(on_progress=stop_at(part, 2))
    assert not (two / "out" / "index.html").exists()
    parts = set()
    wanted(two).run(on_progress=lambda what, *rest: parts.add(what))
    assert parts & {"training bright", "training dark", "translating bright to dark"} == set()
    assert "translating dark to bright" in parts
    first = (two / "out" / "index.html").read_text()
    wanted(two).run()
    assert (two / "out" / "index.html").read_text() == first


def test_one_folder_may_hold_both_sides_and_what_is_tested(tmp_path):
    one, both = (Rehearsal(tmp_path, b, tmp_path, CONFIG) for b in (None, tmp_path / "other"))
    with pytest.raises(UsageError):
        one.run()
    for name in ("trainA", "trainB", "testB"):
        (tmp_path / name).mkdir()
    assert one.sides == (tmp_path / "trainA", tmp_path / "trainB", None, tmp_path / "testB")
    assert both.sides == (tmp_path, tmp_path / "other", None, None)

"""A folder becomes a folder of translations: at their own size, with records, once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import (
    AlreadyExists,
    FileMissing,
    ImageUnreadable,
    InputError,
    LatentNotGaussian,
    PictureMisfit,
    SettingsInvalid,
    UsageError,
)
from ddib_fed.metrics.pictures import picture_rule
from ddib_fed.metrics.structure import Thresholds
from ddib_fed.models.bundle import save_bundle
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.runs.picture_recipe import Recipe
from ddib_fed.runs.picture_report import read_thresholds
from ddib_fed.runs.picture_run import class_tasks, folder_tasks, own_scene, run
from ddib_fed.samples.images import encode_png, read_image
from tests.runs.tiny_models import tiny

FEW = SolverSettings("unipc", 3, 3)
STRICT = Thresholds(
    edge_correlation=1.0,
    mutual_information=64.0,
    chance_edge_correlation=0.1,
    chance_mutual_information=0.2,
    quantile=0.95,
    count=9,
    basis="chance",
)
RECIPE = Recipe("north", "south", FEW, cycle=True)


class StoppedError(Exception):
    """What stands for a kill."""


def opened(name):
    """Models by name; a function of a module, so that worker processes can call it."""
    if name == "deep":
        return tiny("deep", seed=2, soften_sigma=0.02, picture=PictureFormat(low=0, high=4000, bits=16))
    if name == "strict":
        return tiny("strict", seed=4, soften_sigma=0.02, structure=STRICT)
    if name == "classy":
        return tiny("classy", seed=3, num_classes=3)
    return tiny(name, seed=len(name), soften_sigma=0.02, picture=PictureFormat(fit="pad"))


def drawn(height, width, number):
    y, x = np.mgrid[:height, :width]
    return (127 + 100 * np.sin((x + number) / 2) * np.cos(y / 3)).astype(np.uint8)[..., None]


@pytest.fixture
def folder(tmp_path):
    """Five pictures of two sizes, one in a sub-folder."""
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "c", "sub/d", "sub/e")):
        size = (8, 8) if number % 2 else (12, 10)
        (root / f"{name}.png").write_bytes(encode_png(drawn(*size, number)))
    return root


def go(folder, out, recipe=RECIPE, **given):
    return run(recipe, folder_tasks(folder), out, opener=opened, batch=given.pop("batch", 2), **given)


def written(out):
    """What a run wrote, but for the report, which tells how long it took."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


@pytest.mark.slow
def test_each_picture_comes_back_at_its_own_size_with_a_record(folder, tmp_path):
    report = go(folder, tmp_path / "out")
    for name, size in (("a", (12, 10)), ("sub/d", (8, 8))):
        record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert (record["format"], record["input"]) == (2, f"{name}.png")
        stem = name.rpartition("/")[2]
        files = {part: each["file"] for part, each in record["files"].items()}
        assert files == {"translation": f"{stem}.png", "returned": f"{stem}.returned.png"}
        for file in files.values():
            assert read_image((tmp_path / "out" / name).with_name(file)).pixels.shape == (*size, 1)
        picture = record["picture"]
        assert (picture["height"], picture["width"]) == size
        assert picture["cycle_psnr"] == pytest.approx(10 * np.log10(4 / picture["cycle_mse"]))
        assert picture.keys() >= {"edge_correlation", "mutual_information", "outside", "used"}
        assert record["latent"].keys() == {"mean", "std", "kurtosis", "correlation", "count"}
        assert record["run"]["settings"]["evaluations"] == record["solver"]["evaluations"] == 3
        assert record["run"]["settings"]["cycle"] is True
    assert report["count"] == 5
    assert report["cycle_psnr"]["min"] <= report["cycle_psnr"]["median"]
    assert (tmp_path / "out" / "sheet.png").exists()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_ends_the_same(folder, tmp_path):
    """What was finished is not computed again."""

    def stop(done, total, remark):
        if done == 18:
            raise StoppedError

    with pytest.raises(StoppedError):
        go(folder, tmp_path / "out", on_progress=stop)
    kept = (tmp_path / "out" / "a.json").stat().st_mtime_ns
    assert not (tmp_path / "out" / "report.json").exists()
    totals = set()
    report = go(folder, tmp_path / "out", on_progress=lambda done, total, remark: totals.add(total))
    assert report["computed_now"] == 3
    assert totals == {2 * 4 * 3}
    assert (tmp_path / "out" / "a.json").stat().st_mtime_ns == kept
    go(folder, tmp_path / "whole")
    assert written(tmp_path / "out") == written(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a.json", "a.returned.png"])
def test_a_file_that_was_changed_is_made_anew(folder, tmp_path, damage):
    go(folder, tmp_path / "out")
    whole = written(tmp_path / "out")
    (tmp_path / "out" / damage).write_bytes(b"{}")
    assert go(folder, tmp_path / "out")["computed_now"] == 2
    assert written(tmp_path / "out") == whole


@pytest.mark.slow
def test_another_run_is_not_mixed_into_a_folder(folder, tmp_path):
    go(folder, tmp_path / "out")
    with pytest.raises(AlreadyExists):
        go(folder, tmp_path / "out", replace(RECIPE, seed=1))
    assert go(folder, tmp_path / "out", replace(RECIPE, seed=1), force=True)["computed_now"] == 5


@pytest.mark.slow
def test_models_of_16_bits_write_16_bits(folder, tmp_path):
    """On the target's scale; what comes back is on the source's."""
    go(folder, tmp_path / "out", Recipe("north", "deep", FEW, cycle=True))
    assert read_image(tmp_path / "out" / "a.png").pixels.dtype == np.uint16
    assert read_image(tmp_path / "out" / "a.returned.png").pixels.dtype == np.uint8
    picture = json.loads((tmp_path / "out" / "a.json").read_text())["picture"]
    assert (picture["slope"], picture["intercept"], picture["bits"]) == (1.0, 0.0, 16)


@pytest.mark.slow
def test_held_out_pictures_calibrate_what_is_doubtful(folder, tmp_path):
    """Thresholds of one run mark the pictures of another, in records that were there too."""
    go(folder, tmp_path / "held-out", replace(RECIPE, cycle=False))
    found = read_thresholds(tmp_path / "held-out")
    assert found.count == 5
    go(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "a.json").read_text())["picture"].get("structure_doubtful") is None
    high = Thresholds(
        edge_correlation=1.0,
        mutual_information=0.0,
        chance_edge_correlation=0.0,
        chance_mutual_information=0.0,
        quantile=0.05,
        count=5,
    )
    report = go(folder, tmp_path / "out", thresholds=high)
    assert report["structure"]["doubtful"] == 5
    assert report["computed_now"] == 0
    assert (
        json.loads((tmp_path / "out" / "sub" / "e.json").read_text())["picture"].get("structure_doubtful")
        is True
    )


def test_a_report_without_thresholds_is_refused(tmp_path):
    with pytest.raises(FileMissing):
        read_thresholds(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(InputError):
        read_thresholds(tmp_path)


def test_bad_pictures_are_refused_or_listed(folder, tmp_path):
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ImageUnreadable, match=r"bad\.png"):
        folder_tasks(folder)
    found = folder_tasks(folder, skip_bad=True, limit=2)
    report = run(replace(RECIPE, cycle=False), found, tmp_path / "out", opener=opened)
    assert [Path(bad["path"]).name for bad in report["bad"]] == ["bad.png"]
    assert report["count"] == 2


@pytest.mark.parametrize("out", [".", "sub", "results"])
def test_results_may_not_lie_among_the_pictures(folder, out):
    with pytest.raises(UsageError):
        go(folder, folder / out)


@pytest.mark.slow
def test_what_models_cannot_do_is_told_before_anything_is_written(folder, tmp_path):
    for recipe in (
        Recipe("north", "classy", FEW),
        replace(RECIPE, depth=0.5, settings=SolverSettings("ddim", 1, 3, "ddib")),
    ):
        with pytest.raises(SettingsInvalid):
            go(folder, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def classes(tmp_path):
    """Sub-folders by number, with three pictures each, one of them bad."""
    root = tmp_path / "classes"
    for number in (0, 2):
        (root / str(number)).mkdir(parents=True)
        for picture in range(3):
            content = (
                encode_png(drawn(12, 10, 3 * number + picture)) if (number, picture) != (2, 1) else b"\x89PNG"
            )
            (root / str(number) / f"p{picture}.png").write_bytes(content)
    return root


def test_class_to_class_under_the_public_names(classes, tmp_path):
    """The source as the model sees it, and translations of the model's size; numbers count bad pictures too."""
    with pytest.raises(ImageUnreadable):
        class_tasks(classes, [(2, 0)])
    found = class_tasks(classes, [(0, 1), (2, 0)], skip_bad=True)
    report = run(
        Recipe("classy", "classy", FEW, public_names=True), found, tmp_path / "out", opener=opened, batch=2
    )
    made = {path.name for path in (tmp_path / "out").glob("*.PNG")}
    kept = [("0", n, "1") for n in (1, 2, 3)] + [("2", n, "0") for n in (1, 3)]
    assert made == {f"{a}_{n}.PNG" for a, n, _ in kept} | {f"{a}_{n}_translated_{b}.PNG" for a, n, b in kept}
    assert read_image(tmp_path / "out" / "0_1.PNG").pixels.shape == (8, 8, 1)
    record = json.loads((tmp_path / "out" / "2_3_translated_0.json").read_text())
    assert (record["source_class"], record["target_class"]) == ("2", "0")
    assert len(report["bad"]) == 1


def test_classes_by_name_and_a_number_of_pictures_of_each(classes):
    (classes / "0").rename(classes / "cat")
    (classes / "2").rename(classes / "dog")
    found = class_tasks(classes, [(0, 1)], class_names=("cat", "dog", "owl"), limit=2)
    assert [task.name for task in found.tasks] == ["0_1", "0_2"]
    with pytest.raises(FileMissing, match="class 2"):
        class_tasks(classes, [(2, 0)], class_names=("cat", "dog", "owl"))


def test_pictures_of_another_scale_are_refused_before_any_is_translated(folder, tmp_path):
    """By name, with the range that would fit; left out with `skip_bad`; also where only the run itself looks."""
    rule = picture_rule(opened("north").manifest)
    (folder / "deep.png").write_bytes(encode_png(drawn(8, 8, 0).astype(np.uint16) * 257))
    with pytest.raises(PictureMisfit, match=r"(?s)1 of 6 .*deep\.png: .*uint16.*0 to 255") as caught:
        folder_tasks(folder, rule=rule)
    assert "--range 0:65535" in caught.value.hint
    assert "--skip-bad" in caught.value.hint
    assert len(folder_tasks(folder, rule=rule, skip_bad=True).tasks) == 5
    with pytest.raises(PictureMisfit, match=r"deep\.png holds"):
        folder_tasks(folder / "deep.png", rule=rule)
    with pytest.raises(PictureMisfit, match=r"deep\.png holds"):
        go(folder, tmp_path / "out")


@pytest.mark.slow
def test_figures_compare_with_the_picture_as_given(folder, tmp_path):
    """A few values outside of the range are clipped for the model, counted, and count against the round trip."""
    bright = drawn(8, 8, 0).astype(np.uint16)
    bright[:2] = 262
    (folder / "bright.png").write_bytes(encode_png(bright))
    (folder / "whole.png").write_bytes(encode_png(bright.clip(0, 255).astype(np.uint8)))
    report = go(folder, tmp_path / "out", batch=8)
    records = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("bright", "whole")]
    assert [record["picture"]["clipped"] for record in records] == [16, 0]
    assert (report["range"]["clipped"], report["range"]["most_outside"]) == (1, 0.25)
    back = read_image(tmp_path / "out" / "bright.returned.png").pixels / 127.5 - 1
    whole = read_image(tmp_path / "out" / "whole.returned.png").pixels / 127.5 - 1
    assert np.array_equal(back, whole)
    mse = np.mean((back - (bright / 127.5 - 1)) ** 2)
    assert records[0]["picture"]["cycle_mse"] == pytest.approx(mse, rel=0.02)
    assert records[0]["picture"]["cycle_mse"] > records[1]["picture"]["cycle_mse"]


@pytest.mark.slow
def test_the_source_models_own_thresholds_mark_by_default(folder, tmp_path):
    """No option is needed: what its bundle says is applied, stands in the report, and gives way to --thresholds."""
    report = go(folder, tmp_path / "out", replace(RECIPE, source="strict"))
    assert report["structure"]["doubtful"] == 5
    assert report["structure"]["thresholds"]["basis"] == "chance"
    assert json.loads((tmp_path / "out" / "a.json").read_text())["picture"].get("structure_doubtful") is True
    lenient = STRICT.model_copy(update={"edge_correlation": -1.0, "mutual_information": 0.0})
    report = go(folder, tmp_path / "out", replace(RECIPE, source="strict"), thresholds=lenient)
    assert report["structure"]["doubtful"] == 0


def test_thresholds_can_be_those_of_a_model(tmp_path):
    """A bundle's folder stands for its thresholds; one that has none says which command measures them."""
    bundle = opened("strict")
    save_bundle(tmp_path / "strict", bundle.manifest, bundle.state)
    assert read_thresholds(tmp_path / "strict") == STRICT
    bundle = opened("north")
    save_bundle(tmp_path / "north", bundle.manifest, bundle.state)
    with pytest.raises(InputError, match="no thresholds") as caught:
        read_thresholds(tmp_path / "north")
    assert caught.value.hint == f"ddib model thresholds {tmp_path / 'north'} --images FOLDER"


@pytest.mark.slow
def test_a_picture_whose_latent_is_no_noise_is_left_out_with_its_reason(folder, tmp_path):
    """The others of its batch are translated; a run that goes on neither translates it again nor forgets it."""
    (folder / "flat.png").write_bytes(encode_png(np.full((8, 8, 1), 255, np.uint8)))
    report = go(folder, tmp_path / "out", replace(RECIPE, uncertainty=2), batch=8)
    assert (report["count"], report["refused"]) == (5, 1)
    (bad,) = report["bad"]
    assert bad["path"] == str(folder / "flat.png")
    assert "the picture is nearly uniform" in bad["reason"]
    record = json.loads((tmp_path / "out" / "flat.json").read_text())
    assert record["run"]["refused"]["reason"] == "LATENT_NOT_GAUSSIAN"
    assert record["files"] == {}
    assert "flat.json" not in report["pictures"]
    assert not (tmp_path / "out" / "flat.png").exists()
    again = go(folder, tmp_path / "out", replace(RECIPE, uncertainty=2), batch=8)
    assert (again["computed_now"], again["bad"]) == (0, report["bad"])


def test_a_run_of_which_every_picture_is_refused_says_so(folder, tmp_path):
    for path in sorted(folder.rglob("*.png")):
        path.write_bytes(encode_png(np.full((8, 8, 1), 255, np.uint8)))
    with pytest.raises(LatentNotGaussian, match="none of 5 pictures"):
        go(folder, tmp_path / "out")


@pytest.mark.slow
def test_scenes_are_translated_at_their_own_size(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.png").write_bytes(encode_png(drawn(13, 18, number)))
    found = folder_tasks(tmp_path / "in")
    recipe = replace(RECIPE, scene=own_scene(found), keep_latents=True)
    run(recipe, found, tmp_path / "out", opener=opened, batch=2)
    latent = np.load(tmp_path / "out" / "0.latent.npy")
    assert latent.shape == (1, 1, 13, 18)
    assert read_image(tmp_path / "out" / "0.png").pixels.shape == (13, 18, 1)
    record = json.loads((tmp_path / "out" / "0.json").read_text())
    assert record["run"]["settings"]["scene"] == [13, 18]
    assert (record["picture"]["height"], record["picture"]["width"]) == (13, 18)


def test_scenes_of_several_sizes_are_told_apart(folder):
    with pytest.raises(UsageError, match=r"of several: a.png 12x10 and b.png 8x8"):
        own_scene(folder_tasks(folder))

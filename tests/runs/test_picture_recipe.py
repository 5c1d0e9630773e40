"""A recipe fixes what is computed together and what it is called, whoever computes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import UsageError
from ddib_fed.names import names_apart
from ddib_fed.runs.picture_recipe import Recipe, Task, batches, check_names

RECIPE = Recipe("north", "south", SolverSettings())
TASK = Task(Path("in/a.png"), "a.png", "a", "00" * 32)


def task(name, source=None, target=None):
    return Task(Path(f"in/{name}.png"), f"{name}.png", name, "00" * 32, source, target)


def test_batches_never_mix_classes_and_keep_the_order():
    tasks = [task("a", 0, 1), task("b", 0, 1), task("c", 0, 1), task("d", 2, 1), task("e", 2, 1)]
    found = list(batches(tasks, 2))
    assert [[each.name for each in batch] for batch in found] == [["a", "b"], ["c"], ["d", "e"]]


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, settings=SolverSettings("ddim", 1, 48)),
        replace(RECIPE, soften=0.1),
        replace(RECIPE, depth=0.5),
        replace(RECIPE, seed=1),
        replace(RECIPE, cycle=True),
        replace(RECIPE, guidance=2.0),
        replace(RECIPE, guidance=2.0, guide_encoding=True),
        replace(RECIPE, clip=True),
        replace(RECIPE, dtype="bfloat16"),
        replace(RECIPE, uncertainty=4),
    ],
)
def test_another_recipe_is_another_request(other):
    assert TASK.request(other, ["m"]) != TASK.request(RECIPE, ["m"])


def test_a_request_is_of_the_models_and_the_picture_not_of_where_they_lie():
    asked = TASK.request(RECIPE, ["m", "n"])
    assert asked == TASK.request(replace(RECIPE, source="elsewhere/north"), ["m", "n"])
    assert asked == replace(TASK, path=Path("other.png"), name="other").request(RECIPE, ["m", "n"])
    assert asked != TASK.request(RECIPE, ["m", "o"])
    assert asked != replace(TASK, digest="11" * 32).request(RECIPE, ["m", "n"])
    assert asked != replace(TASK, target_class=3).request(RECIPE, ["m", "n"])


def test_an_order_that_is_the_default_is_the_same_request():
    """Order 0 stands for the solver's own."""
    said = replace(RECIPE, settings=SolverSettings("unipc", 3, 48))
    assert TASK.request(said, []) == TASK.request(RECIPE, [])


def test_results_have_the_names_of_their_pictures():
    files = task("sub/scan").files(replace(RECIPE, cycle=True, uncertainty=2, keep_latents=True))
    assert files == {
        "record": "sub/scan.json",
        "translation": "sub/scan.png",
        "returned": "sub/scan.returned.png",
        "uncertainty": "sub/scan.uncertainty.png",
        "latent": "sub/scan.latent.npy",
    }


def test_class_to_class_has_the_public_names():
    files = task("260_1", 260, 261).files(replace(RECIPE, public_names=True))
    assert files["source"] == "260_1.PNG"
    assert files["translation"] == "260_1_translated_261.PNG"
    assert files["record"] == "260_1_translated_261.json"


def test_pictures_that_differ_in_their_suffix_alone_keep_it():
    assert names_apart(["a.png", "b.v2.png", "A.jpg", "sub/a.png"]) == ["a-png", "b.v2", "A-jpg", "sub/a"]
    assert names_apart(["a.png", "a.jpg", "a-png.tif"]) == ["a-png", "a-jpg", "a-png-tif"]


def test_two_results_of_one_name_are_refused():
    """A picture that is called as another one's way back."""
    tasks = [task("a"), task("a.returned")]
    check_names(tasks, RECIPE)
    with pytest.raises(UsageError, match=r"a\.png and a\.returned\.png"):
        check_names(tasks, replace(RECIPE, cycle=True))


def test_one_picture_may_go_to_several_classes():
    tasks = [task("260_1", 260, 261), task("260_1", 260, 262)]
    tasks[1] = replace(tasks[1], path=tasks[0].path)
    check_names(tasks, replace(RECIPE, public_names=True))


@pytest.mark.parametrize("name", ["run", "Report", "sheet"])
def test_a_result_is_not_called_as_a_file_of_the_run(name):
    with pytest.raises(UsageError, match="of the run itself"):
        check_names([task("a"), task(name)], RECIPE)
    check_names([task("sub/" + name)], RECIPE)


def test_a_scene_is_asked_for_and_without_one_a_request_is_that_of_earlier_releases():
    assert "scene" not in RECIPE.described()
    scenes = [task("a").request(replace(RECIPE, scene=size), []) for size in (None, (8, 9), (9, 8))]
    assert len(set(scenes)) == 3

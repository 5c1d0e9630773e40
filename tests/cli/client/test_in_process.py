"""`ddib translate --source MODEL --target MODEL`: the command between nodes, over two models of this process."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed import Request
from ddib_fed.cli.main import cli
from ddib_fed.client.in_process import InProcess
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.datasets import load_shipped
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.engine.local_party import open_party
from ddib_fed.errors import (
    AlreadyExists,
    Cancelled,
    ExitCode,
    FilesLeftOut,
    InputError,
    JobFailed,
    ModelNotFound,
    SettingsInvalid,
    ShapeMismatch,
    UsageError,
)
from ddib_fed.models.bundle import open_bundle, save_bundle
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.record import Part, Settings
from tests.formats.dicom.files import write_series
from tests.runs.tiny_models import tiny, tiny_classifier

FEW = ("--evaluations", "3", "--set", "depth=0.5")
PAIR = ("--source", "north", "--target", "south", *FEW)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Some models, and a classifier."""
    root = tmp_path_factory.mktemp("models")
    classy = tiny("classy", num_classes=3)
    made = {
        "north": tiny("north", seed=1, soften_sigma=0.02, picture=PictureFormat(fit="pad")),
        "south": tiny("south", seed=2, soften_sigma=0.02),
        "deep": tiny("deep", seed=2, soften_sigma=0.02, picture=PictureFormat(low=0, high=4000, bits=16)),
        "classy": replace(
            classy, manifest=classy.manifest.model_copy(update={"schedule": ScheduleConfig("linear", 1000)})
        ),
        "classifier": tiny_classifier(3),
    }
    for name, bundle in made.items():
        save_bundle(root / name, bundle.manifest, bundle.state)
    return root


@pytest.fixture
def place(models, tmp_path, monkeypatch) -> Path:
    """A folder with pictures of two sizes, one in a sub-folder; the models are here by their names."""
    monkeypatch.chdir(tmp_path)
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    put(tmp_path / "in" / "a.png", 12, 10)
    put(tmp_path / "in" / "b.png", 8, 8)
    put(tmp_path / "in" / "sub" / "c.png", 12, 10)
    return tmp_path


def put(path: Path, height: int, width: int, seed: int = 0, top: int = 255) -> None:
    pixels = np.random.default_rng(seed + height).integers(0, top, (height, width, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels.astype(np.uint8 if top < 256 else np.uint16)))


def translate(*words: object, out: str = "out") -> str:
    line = ["translate", *map(str, words), "--out", out]
    return CliRunner().invoke(cli, line, catch_exceptions=False, standalone_mode=False).stdout


def files(folder: Path) -> set[str]:
    """What a command wrote, but for its page."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()}
    return found - {"report.html"}


def record(name: str, out: str = "out") -> dict:
    return json.loads(Path(out, f"{name}.json").read_text())


@pytest.mark.slow
def test_a_folder_goes_there_and_back_and_is_not_translated_twice(place):
    """At their own sizes, with records and a page; --force makes all again."""
    said = translate("in", *PAIR, "--cycle")
    assert "3 of 3 items" in said
    for name, size in (("a", (12, 10)), ("b", (8, 8)), ("sub/c", (12, 10))):
        found = record(name)
        assert {part: each["file"] for part, each in found["files"].items()} == {
            "translation": f"{Path(name).name}.png",
            "returned": f"{Path(name).name}.returned.png",
        }
        for suffix in (".png", ".returned.png"):
            assert read_image(place / "out" / f"{name}{suffix}").pixels.shape == (*size, 1)
        assert (found["source_domain"], found["target_domain"]) == ("north", "south")
        assert (found["picture"]["height"], found["picture"]["width"]) == size
        assert found["solver"]["depth"] == 0.5
    assert (place / "out" / "report.html").exists()
    whole, times = files(place / "out"), (place / "out" / "b.png").stat().st_mtime_ns
    returned = read_image(place / "out" / "a.returned.png").pixels.astype(int)
    assert "3 of them were there before" in translate("in", *PAIR, "--cycle")
    (place / "out" / "a.returned.png").write_bytes(b"{}")
    with pytest.raises(AlreadyExists):
        translate("in", *PAIR, "--cycle")
    translate("in", *PAIR, "--cycle", "--force")
    assert np.array_equal(read_image(place / "out" / "a.returned.png").pixels, returned)
    assert files(place / "out") == whole
    assert (place / "out" / "b.png").stat().st_mtime_ns > times
    for other in ("seed=1", "soften-sigma=0.05", "dtype=bfloat16"):
        with pytest.raises(AlreadyExists):
            translate("in", *PAIR, "--cycle", "--set", other)


def test_slices_of_a_volume_share_their_noise(models):
    """Whatever else is in the job; pictures of no volume have noise of their own. The record says which it was."""
    client = InProcess(*(open_party(open_bundle(str(models / name))) for name in ("north", "south")))
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 1)).astype(np.uint8)
    near = np.concatenate([pixels[:1], pixels[:1] ^ np.eye(8, dtype=np.uint8)[0, :, None]])

    def latents(given: np.ndarray, volume: bytes) -> list[np.ndarray]:
        asked = Request(Settings(evaluations=4), keep_latents=True)
        job = client.submit([*map(encode_png, given)], client.target, asked, volume_sha256=volume)
        made = [*client.results(job.job_id)]
        assert {each.record.shared_noise for each in made} == {bool(volume)}
        return [np.load(io.BytesIO(each.files[Part.LATENT].data)) for each in made]

    first, second = latents(near, b"1" * 32)
    np.testing.assert_array_equal(latents(pixels, b"1" * 32)[0], first)
    own = latents(near, b"")
    assert np.std(first - second) < 0.3 * np.std(own[0] - own[1])
    assert np.std(first - latents(near, b"2" * 32)[0]) > 0.5 * np.std(own[0] - own[1])


@pytest.mark.slow
def test_a_series_alone_has_a_page_and_says_at_what_size_it_was_computed(place):
    """A row for each slice, with its picture and its own doubts."""
    write_series(place / "mr", np.random.default_rng(0).integers(0, 2000, (3, 24, 20)))
    lost = "was computed at 7 x 8 pixels, not at its own 20 x 24, and enlarged: 9 pixels became one"
    result = CliRunner().invoke(cli, ["translate", "mr", *PAIR, "--cycle", "--keep-latents", "--out", "out"])
    assert f"  {lost}\n" in result.stdout
    assert "latents of mr are not kept" in result.output
    assert "3 of 3 doubtful (slice 1, slice 2, slice 3): Translated back" in " ".join(result.output.split())
    assert (record("mr/series-1")["study"]["computed_at"], record("mr/series-1")["study"]["shrink"]) == (
        [8, 7],
        3,
    )
    page = (place / "out" / "report.html").read_text()
    assert lost in page
    for number in (1, 2, 3):
        row = page.partition(f">series-1, slice {number}<")[2].partition("</tr>")[0]
        assert "doubtful: round trip" in row
        assert row.count("data:image/png") == 1


@pytest.mark.slow
def test_what_was_interrupted_goes_on_and_ends_the_same(place, monkeypatch):
    """As after Ctrl-C: the hint is the command, and what was written is not made again."""
    translate("in", *PAIR, "--set", "batch=1", out="whole")
    real, made = InProcess._result, []

    def result(self, *given):
        made.append(real(self, *given))
        if len(made) == 2:
            self.abort()
        return made[-1]

    with monkeypatch.context() as patched:
        patched.setattr(InProcess, "_result", result)
        with pytest.raises(Cancelled) as caught:
            translate("in", *PAIR, "--set", "batch=1")
    assert "to resume" in caught.value.hint
    assert "job" not in caught.value.hint
    there = [path.name for path in (place / "out").rglob("[abc].json")]
    assert 1 <= len(there) < 3
    assert f"{len(there)} of them were there before" in translate("in", *PAIR, "--set", "batch=1")
    assert files(Path("out")) == files(Path("whole"))
    assert (place / "out" / "b.png").read_bytes() == (place / "whole" / "b.png").read_bytes()


@pytest.mark.slow
def test_a_picture_that_a_node_would_refuse_is_refused_and_the_others_are_translated(place):
    """A checkerboard is no satellite picture: its latent has a deviation of about 15."""
    test = load_shipped("satellite").test[0]
    pixels = np.rint((test.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    board = np.indices(test.shape[1:]).sum(axis=0) % 2 * 255
    (place / "sent").mkdir()
    (place / "sent" / "map.png").write_bytes(encode_png(pixels))
    (place / "sent" / "board.png").write_bytes(
        encode_png(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    )
    pair = ("sent", "--source", "satellite", "--target", "relief", "--evaluations", "8")
    with pytest.raises(JobFailed, match="LATENT_NOT_GAUSSIAN") as refused:
        translate(*pair)
    assert "train the source's model longer" in refused.value.hint
    assert "--skip-bad" in refused.value.hint
    assert (place / "out" / "map.png").exists()
    for out in ("out", "new"):  # of one the refused picture is left, of the other both are
        with pytest.raises(FilesLeftOut, match=r"board\.png") as left:
            translate(*pair, "--skip-bad", out=out)
        assert left.value.exit_code == ExitCode.LEFT_OUT


@pytest.mark.slow
def test_class_to_class_with_a_classifier_and_the_public_codes_levels(place):
    """Under its names, at the model's size; it neither softens nor leaves values unclipped."""
    for number in (0, 1):
        put(place / "classes" / "0" / f"{number}.png", 12, 10, seed=number)
    translate(
        *("classes", "--source", "classy", "--target", "classy", "--set", "pairs=0:2", "--set", "limit=1"),
        *("--set", "classifier=classifier", "--set", "classifier-scale=2"),
        *("--set", "flags=--use_ddim True", "--evaluations", "50"),
    )
    assert read_image(place / "out" / "0_1_translated_2.PNG").pixels.shape == (8, 8, 1)
    assert read_image(place / "out" / "0_1.PNG").pixels.shape == (8, 8, 1)
    assert not (place / "out" / "0_2.PNG").exists()
    found = record("0_1_translated_2")
    assert (found["solver"]["grid"], found["soften_sigma"]) == ("ddib", 0.0)
    assert found["guidance"] == {"classifier_scale": 2.0, "clip": True}
    assert (found["source_class"], found["target_class"]) == ("0", "2")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("in", "--source", "north"), UsageError),
        (("in", *PAIR, "--to", "a.example/b"), UsageError),
        (("in", *PAIR, "--detach"), UsageError),
        (("in", *PAIR, "--device", "abacus"), SettingsInvalid),
        (("in", "--source", "north", "--target", "nowhere"), ModelNotFound),
        (("in", "--source", "classy", "--target", "classy", *FEW), SettingsInvalid),
        (("in/a.png", "--source", "moons", "--target", "moons"), InputError),
        (("in/a.png", "--source", "north", "--target", "satellite"), ShapeMismatch),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_translated(place, words, error):
    with pytest.raises(error):
        translate(*words)
    assert not [path for path in Path("out").rglob("*") if path.name[0] != "."]

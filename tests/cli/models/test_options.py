"""An option that has no effect or contradicts a model is refused; the public code's options, and its checkpoints."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ddib_fed.cli.main import cli
from ddib_fed.cli.model import model
from ddib_fed.cli.translate import translate
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.errors import AlreadyExists, BundleInvalid, SettingsInvalid, UsageError
from ddib_fed.importers import guided
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.build import network_shapes
from ddib_fed.networks.config import SyntheticConfig, UNetConfig
from ddib_fed.training.points import PointTask
from tests.models.examples import state
from tests.models.importers.test_guided import FLAGS, SMALL, random_state
from tests.runs.picture_folders import blocks, write
from tests.runs.tiny_models import tiny, tiny_classifier
from tests.training.examples import blobs

FEW = ("--evaluations", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models with and without classes and softening, a classifier, a picture, and points."""
    root = tmp_path_factory.mktemp("place")
    models = {
        "plain": tiny("plain"),
        "soft": tiny("soft", soften_sigma=0.02),
        "dropped": tiny("dropped", num_classes=3, class_dropout=True),
        "classifier": tiny_classifier(3),
    }
    for name, made in models.items():
        save_bundle(root / name, made.manifest, made.state)
    write(root / "in", blocks(1))
    write(root / "other", blocks(1))
    np.save(root / "points.npy", np.random.default_rng(0).normal(size=(20, 2)))
    return root


@pytest.fixture
def refused(place, tmp_path, monkeypatch):
    """Runs `ddib WORDS... --out out` where the models lie; it must be refused, and `out` must not be there."""
    monkeypatch.chdir(place)

    def call(line: str) -> str:
        words = [*line.split(), "--out", str(tmp_path / "out")]
        with pytest.raises((UsageError, SettingsInvalid)) as caught:
            CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
        assert not (tmp_path / "out").exists()
        return f"{caught.value.detail} {caught.value.hint}"

    return call


PICTURES = "translate in --source soft --target soft --evaluations 3"
POINTS = "translate points.npy --source moons --target checkerboards --evaluations 12"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"{PICTURES} --set classifier-scale=3", "classifier=MODEL"),
        ("model sample dropped --n 1 --evaluations 3 --set guidance=3", "--target-class"),
    ],
)
def test_guidance_without_what_it_needs_is_refused(refused, line, named):
    """Who ports the public command and forgets one option must not get unguided pictures."""
    assert named in refused(line)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("model train --domain satellite --steps 1 --fit pad", "--fit"),
        ("model train --domain moons --steps 1 --resume --force", "--resume"),
        ("model train --images scans --size 8 --steps 1 --set image_size=16", "image_size"),
        ("model train --images scans --model dropped --steps 1 --set colours=opponent", "colours"),
        ("model import --synthetic points.npy --soften-sigma 0", "--soften-sigma"),
    ],
)
def test_training_and_import_refuse_what_they_would_not_use(refused, place, line, named):
    for number, pixels in enumerate(blobs(12, channels=1)):
        path = place / "scans" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(path)
    assert named in refused(line)


@pytest.mark.parametrize(
    "option", ["--set seed=1", "--set soften-sigma=0.1", "--set flags=x", "--device cpu"]
)
def test_what_one_process_alone_can_do_is_refused_between_nodes(refused, option):
    assert option.removesuffix(" cpu").partition("=")[0] in refused(
        f"translate in --to south.example/relief {option}"
    )


PUBLIC = ("--set", "network=public", "--set", "num_channels=32", "--set", "num_res_blocks=1")


@pytest.mark.slow
def test_the_public_network_is_trained_sampled_exported_and_imported(ddib, tmp_path, monkeypatch):
    """Every step of the way by commands; what comes back from the public form is the same network."""
    monkeypatch.setattr(PointTask, "show", lambda *_, **__: "")  # draws 10,000 points
    out, again = tmp_path / "m", tmp_path / "again"
    sets = ("--set", "noise_schedule=cosine", "--set", "diffusion_steps=200")
    ddib(model, "train", "--domain", "moons", *PUBLIC, *sets, "--batch", 64, "--steps", 5, "--out", out)
    ddib(
        model, "sample", out, "--set", "flags=--timestep_respacing ddim20", "--n", 50, "--out", tmp_path / "s"
    )
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["settings"]["evaluations"] == 20
    said = ddib(model, "export", out, "--out", tmp_path / "log2D0" / "model000000.pt").output
    assert "--num_channels 32 --num_res_blocks 1" in said
    assert "--diffusion_steps 200 --noise_schedule cosine" in said
    file = tmp_path / "log2D0" / "model000000.pt"
    flags = ("--flags", "--diffusion_steps 200 --noise_schedule cosine")
    ddib(model, "import", "--synthetic", file, *flags, "--domain", "moons", "--out", again)
    made, read = load_bundle(out), load_bundle(again)
    assert read.manifest.network == made.manifest.network.model_copy(update={"dropout": 0.0})
    assert read.manifest.schedule == made.manifest.schedule
    assert all(torch.equal(read.state[key], value) for key, value in made.state.items())
    with pytest.raises(AlreadyExists):
        ddib(model, "export", out, "--out", file)


@pytest.mark.parametrize(
    ("flags", "options", "error", "word"),
    [
        ("--diffusion_steps 4000", (), SettingsInvalid, "trained with 1000 diffusion steps"),
        ("--timestep_respacing ddim50", ("--evaluations", 48), SettingsInvalid, "keeps 50, not 48"),
        ("--eta 0.5", ("--set", "solver=flow-map"), UsageError, "omit|ddim"),
    ],
    ids=str,
)
def test_what_contradicts_the_model_or_itself_is_refused(ddib, tmp_path, flags, options, error, word):
    network, schedule = SyntheticConfig(num_channels=32, num_res_blocks=1), ScheduleConfig("linear", 1000)
    made = Manifest(
        name="small", domain="moons", sample_shape=(2,), network=network, parameterisation="eps",
        time_input="timestep", schedule=schedule,
    )  # fmt: skip
    save_bundle(tmp_path / "model", made, state(network))
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32))
    way = (tmp_path / "points.npy", "--source", tmp_path / "model", "--target", tmp_path / "model")
    with pytest.raises(error, match=word):
        ddib(translate, *way, "--set", f"flags={flags}", *options, "--out", tmp_path / "t")
    assert not list((tmp_path / "t").glob("points*"))


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(random_state(SMALL), tmp_path / "ema_0.9999_020000.pt")
    return tmp_path / "ema_0.9999_020000.pt"


def test_a_checkpoint_becomes_a_bundle_and_every_setting_is_shown(ddib, checkpoint, tmp_path):
    out = tmp_path / "m"
    said = ddib(
        model, "import", checkpoint, "--out", out, "--flags", FLAGS, "--domain", "dogs", "--name", "ADM"
    ).output
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert rows["num_channels"] == ["32", "--flags"]
    assert rows["num_head_channels"] == ["16", "--flags"]
    assert rows["noise_schedule"] == ["linear", "public", "default"]
    assert "--use_fp16 is not used" in said
    assert "averaged over training (rate 0.9999, step 020000)" in said
    made = load_bundle(out).manifest
    assert (made.domain, made.name, made.network) == ("dogs", "ADM", SMALL)


def test_public_defaults_alone_are_a_warning_everywhere(ddib, checkpoint, tmp_path, monkeypatch):
    """On the terminal, in JSON and in the manifest's record; with --flags there is none."""
    monkeypatch.setitem(guided.MODEL, "num_channels", 32)  # of 128: a smaller file
    usual = UNetConfig(
        image_size=64, model_channels=32, out_channels=3, num_res_blocks=2, num_heads=4, attention_resolutions=(4, 8),
        channel_mult=(1, 2, 3, 4), use_scale_shift_norm=True,
    )  # fmt: skip
    torch.save(
        {key: torch.zeros(value.shape) for key, value in network_shapes(usual).items()}, tmp_path / "u.pt"
    )
    said = ddib(model, "import", tmp_path / "u.pt", "--out", tmp_path / "m", "--format", "json")
    assert "warning: without --flags" in said.stderr
    assert "num_heads" in said.stderr
    warned = json.loads(said.stdout)["warnings"]
    assert "noise_schedule" in warned[0]
    assert warned[0] in load_bundle(tmp_path / "m").manifest.data.note
    told = ddib(model, "import", checkpoint, "--out", tmp_path / "f", "--flags", FLAGS, "--format", "json")
    assert json.loads(told.stdout)["warnings"] == []


def test_a_tensor_under_two_names_is_refused(ddib, checkpoint, tmp_path):
    """With and without the prefix of a wrapper: one of the two won before, in silence."""
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "module.out.2.bias": state["out.2.bias"] + 1.0}, tmp_path / "twice.pt")
    with pytest.raises(BundleInvalid, match=r"out\.2\.bias.*two"):
        ddib(model, "import", tmp_path / "twice.pt", "--out", tmp_path / "m")

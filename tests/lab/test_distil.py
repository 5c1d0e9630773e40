"""A run that distils: it is refused, resumed and marked as any other, and what it makes takes a few steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.bridge import decode
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.model import DomainModel, check_decoding, check_encoding
from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.guidance import Guidance
from ddib_fed.lab.config import DistilConfig
from ddib_fed.lab.teacher import open_starts
from ddib_fed.models.bundle import load_bundle, make_bundle, pretrained, save_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.config import MlpConfig, UNetConfig, build_network
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from ddib_fed.training.sources import open_start
from tests.models.distilled_bundles import SMALL_UNET
from tests.models.distilled_bundles import distilled as flow_map
from tests.models.examples import manifest as example_manifest
from tests.models.examples import state
from tests.training.pictures.examples import spots_source


def config(teacher="moons", **fields):
    usual = {"steps": 12, "batch": 64, "samples": 200, "teacher_evaluations": 12, "checkpoint_every": 4}
    return DistilConfig(teacher=str(teacher), **{**usual, **fields})


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A bundle of a few steps, and the losses of the run."""
    folder = tmp_path_factory.mktemp("distilled")
    losses = []
    made = train(
        config(steps=60, batch=256, learning_rate=2e-3, ema=0.9),
        folder,
        lambda progress: losses.append(progress.loss),
    )
    return made, losses


@pytest.mark.slow
def test_the_manifest_names_the_teacher_and_the_error(distilled):
    """Digest, and distances at 1, 2, 4 and 8 evaluations, both ways; another domain it is not."""
    made, teacher = distilled[0].manifest, pretrained("moons")
    assert made.distilled is not None
    assert (made.distilled.teacher, made.distilled.teacher_name) == (teacher.digest, "moons")
    assert [error.evaluations for error in made.distilled.errors] == [1, 2, 4, 8]
    assert (made.domain, made.schedule, made.normalisation) == (
        teacher.manifest.domain, teacher.manifest.schedule, teacher.manifest.normalisation,
    )  # fmt: skip
    assert made.is_flow_map


@pytest.mark.slow
def test_a_few_steps_are_closer_to_the_teacher_than_its_own_few_steps(distilled):
    """After 60 steps of training 4 evaluations already beat the multistep solver's 4."""
    teacher = pretrained("moons")
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    exact = decode(noise, teacher.denoiser(), teacher.schedule, SolverSettings(evaluations=200))
    own, few = (
        decode(noise, made.denoiser(), made.schedule, SolverSettings(solver, evaluations=4))
        for made, solver in ((distilled[0], "flow-map"), (teacher, "unipc"))
    )
    assert float((own - exact).norm(dim=1).median()) < 0.5 * float((few - exact).norm(dim=1).median())


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    """Bit for bit, though its paths are not stored."""
    whole = train(config(), tmp_path / "whole")

    def stop(progress):
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(), tmp_path / "stopped", stop)
    resumed = train(config(), tmp_path / "stopped", resume=True)
    assert resumed.manifest.weights_sha256 == whole.manifest.weights_sha256


@pytest.mark.slow
def test_points_of_ones_own_are_in_the_units_of_the_model(tmp_path):
    """A file's points pass the teacher's normalisation, whatever they are like themselves."""
    points = np.random.default_rng(0).normal(5.0, 2.0, size=(400, 2)).astype(np.float32)
    np.save(tmp_path / "own.npy", points)
    found = open_starts(config(data=tmp_path / "own.npy"), pretrained("moons"))
    assert found.held_out.mean() == pytest.approx(5.0, abs=0.6)
    assert found.held_out.shape == (40, 2)


@pytest.mark.parametrize(
    ("name", "domain"), [("moons", "moons"), ("0", "points"), ("own", "concentric-rings")]
)
def test_a_teacher_that_is_only_called_after_a_domain_is_not_distilled_on_it(name, domain):
    """A file moons.npy, or 0.npy, whose points have units of their own."""
    units = Normalisation(mean=5.0, std=2.0)
    made = example_manifest().model_copy(update={"name": name, "domain": domain, "normalisation": units})
    with pytest.raises(SettingsInvalid, match="none are named") as refused:
        open_starts(config(), make_bundle(made, state()))
    assert "--data FILE.npy" in refused.value.hint


def small_pictures(tmp_path):
    network = UNetConfig(**SMALL_UNET)
    torch.manual_seed(0)
    manifest = Manifest(
        name="own", domain="own", sample_kind="picture", sample_shape=(3, 8, 8), network=network,
        time_input="scaled-lambda", soften_sigma=0.05,
    )  # fmt: skip
    module = build_network(network)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.05)
    save_bundle(tmp_path / "teacher", manifest, module.state_dict())
    return tmp_path / "teacher"


@pytest.mark.slow
def test_pictures_are_distilled_from_a_folder(tmp_path):
    """A folder's pictures and the model alone; the new bundle keeps size, softening and units."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for k in range(24):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
            tmp_path / "images" / f"{k}.png"
        )
    made = train(
        config(
            small_pictures(tmp_path),
            images=tmp_path / "images",
            batch=8,
            steps=3,
            samples=4,
            checkpoint_every=3,
        ),
        tmp_path / "out",
    )
    assert made.manifest.distilled is not None
    assert made.manifest.distilled.samples >= 1
    assert (made.manifest.soften_sigma, made.manifest.sample_shape) == (0.05, (3, 8, 8))
    assert load_bundle(tmp_path / "out").digest == made.digest


@pytest.mark.slow
def test_a_distilled_model_is_not_distilled_again(distilled, tmp_path):
    """Its errors would be relative to a copy."""
    save_bundle(tmp_path / "again", distilled[0].manifest, distilled[0].state)
    with pytest.raises(SettingsInvalid, match="is distilled already"):
        train(config(tmp_path / "again", domain="moons"), tmp_path / "out")


def test_a_model_whose_data_no_package_carries_needs_their_name(tmp_path):
    """The error says the option."""
    network = MlpConfig(width=8, blocks=1)
    manifest = Manifest(name="own", domain="own", sample_shape=(2,), network=network)
    save_bundle(tmp_path / "teacher", manifest, build_network(network).state_dict())
    with pytest.raises(SettingsInvalid, match="no package carries") as refused:
        train(config(tmp_path / "teacher"), tmp_path / "out")
    assert "--data FILE.npy" in refused.value.hint


STEPS = SolverSettings("flow-map", evaluations=8)


def test_a_model_that_was_not_distilled_refuses_its_steps():
    """With the command that makes one."""
    with pytest.raises(SettingsInvalid, match="moons was not distilled") as refused:
        check_decoding(DomainModel(pretrained("moons")), STEPS, None)
    assert "ddib model distil moons" in refused.value.hint


@pytest.mark.slow
def test_what_a_distilled_step_does_not_know_is_refused(distilled):
    """Clipping and other encoders are no part of the ODE that was distilled; the other solvers still can."""
    model = DomainModel(distilled[0])
    check_decoding(model, STEPS, None)
    check_encoding(model, STEPS, None)
    with pytest.raises(SettingsInvalid, match="clipping is no part of it"):
        check_decoding(model, STEPS, None, Guidance(clip=True))
    with pytest.raises(SettingsInvalid, match="the encoder mixed is no part of it"):
        check_encoding(model, SolverSettings("flow-map", evaluations=8, encoder="mixed"), None)
    check_decoding(model, SolverSettings(), None, Guidance(clip=True))


def test_a_manifest_of_a_flow_map_says_what_it_was_made_from():
    """A flow map without, or another network with a teacher, is no bundle."""
    with pytest.raises(ValueError, match="says what it was distilled from"):
        Manifest(name="own", domain="own", sample_shape=(2,), network=MlpConfig(flow_map=True))


def test_a_distilled_model_is_no_start_of_training(tmp_path):
    """Training on velocities would unlearn its steps, and the manifest would still name its teacher."""
    made = flow_map(UNetConfig(**SMALL_UNET, flow_map=True), (3, 8, 8), time_input="scaled-lambda")
    save_bundle(tmp_path / "own", made.manifest, made.state)
    with pytest.raises(BundleInvalid, match="training would unlearn its steps"):
        open_start(TrainConfig(kind="pictures", init=tmp_path / "own"), spots_source(3))

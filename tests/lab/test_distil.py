"""A run that distils is refused, resumed and marked as any other; questions lie on paths of the teacher's ODE."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings, decode
from ddib_fed.engine.model import DomainModel, check_decoding, check_encoding
from ddib_fed.engine.record import Guidance
from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.lab.config import DistilConfig
from ddib_fed.lab.distil import PathPool, Starts, Teacher, asked, open_starts
from ddib_fed.models.bundle import load_bundle, make_bundle, pretrained, save_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.config import MlpConfig, UNetConfig, build_network
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.pictures import open_start
from ddib_fed.training.run import train
from tests.models.distilled_bundles import SMALL_UNET
from tests.models.distilled_bundles import distilled as flow_map
from tests.models.examples import manifest as example_manifest
from tests.models.examples import state
from tests.training.examples import spots_source, stop_at


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

    with pytest.raises(KeyboardInterrupt):
        train(config(), tmp_path / "stopped", stop_at(7))
    resumed = train(config(), tmp_path / "stopped", resume=True)
    assert resumed.manifest.weights_sha256 == whole.manifest.weights_sha256


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


def test_a_model_whose_data_no_package_carries_needs_their_name(tmp_path):
    """The error says the option."""
    network = MlpConfig(width=8, blocks=1)
    manifest = Manifest(name="own", domain="own", sample_shape=(2,), network=network)
    save_bundle(tmp_path / "teacher", manifest, build_network(network).state_dict())
    with pytest.raises(SettingsInvalid, match="no package carries") as refused:
        train(config(tmp_path / "teacher"), tmp_path / "out")
    assert "--data FILE.npy" in refused.value.hint


STEPS = SolverSettings("flow-map", evaluations=8)


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


def test_a_distilled_model_is_no_start_of_training(tmp_path):
    """Training on velocities would unlearn its steps, and the manifest would still name its teacher."""
    made = flow_map(UNetConfig(**SMALL_UNET, flow_map=True), (3, 8, 8), time_input="scaled-lambda")
    save_bundle(tmp_path / "own", made.manifest, made.state)
    with pytest.raises(BundleInvalid, match="training would unlearn its steps"):
        open_start(TrainConfig(kind="pictures", init=tmp_path / "own"), spots_source(3))


def bundle(network=None, shape=(2,), **fields):
    network = network or MlpConfig(width=16, blocks=1)
    torch.manual_seed(0)
    module = build_network(network)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    kind = "point" if len(shape) == 1 else "picture"
    manifest = Manifest(
        name="own", domain="own", sample_kind=kind, sample_shape=shape, network=network, **fields
    )
    return make_bundle(manifest, module.state_dict())


def starts(shape=(2,), labels=None):
    def take(u):
        x = np.sin(37.0 * u[:, :1] + np.arange(math.prod(shape))).astype(np.float32).reshape(-1, *shape)
        return x, None if labels is None else (u[:, 1] * labels).astype(np.int64)

    held, classes = take(np.random.default_rng(0).random((8, 4)))
    return Starts("own", take, held, classes)


def teacher(made=None, begun=None, evaluations=24):
    run = config(batch=12, seed=3, uses=2, teacher_evaluations=evaluations)
    return Teacher(made or bundle(), begun or starts(), run, torch.device("cpu"))


def pool(found):
    return PathPool(found, config(batch=12, seed=3, uses=2, teacher_evaluations=24))


def test_paths_from_noise_end_where_the_teacher_decodes():
    """The last node is the sample of the latent at the first, to the accuracy of both."""
    found = teacher(evaluations=48)
    _, path = found.batch(0, slice(0, 6))
    exact = decode(path.x[0], found.denoiser, found.schedule, SolverSettings(evaluations=400))
    assert torch.allclose(path.x[-1], exact, atol=2e-3)
    assert bool((path.phis.diff() < 0).all())


def test_an_answer_takes_its_question_to_another_node_of_its_path():
    """x + (phi_s - phi_t) target is a node, whichever way it lies; without a span the target is the velocity."""
    found = teacher()
    paths = found.batch(0, slice(0, 6))
    u = torch.rand(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u[:4, 2] = 0.0
    questions = asked(paths, u, found.denoiser)
    phi = torch.atan(torch.exp(-torch.stack([questions.times, questions.to]).double()))
    reached = questions.x + (phi[1] - phi[0]).float()[:, None] * questions.target
    for k in range(12):
        nodes = paths[k % 2].x[:, k // 2]
        assert float((nodes - questions.x[k]).abs().amax(1).min()) == 0.0
        assert float((nodes - reached[k]).abs().amax(1).min()) < 1e-5
    assert torch.equal(questions.times == questions.to, u[:, 2] < 0.125)
    signs = torch.sign(phi[1] - phi[0])
    assert {-1.0, 1.0} <= set(signs.tolist())
    still = found.denoiser.evaluate(questions.x[:4], torch.zeros(4), phi[0, :4].cos(), phi[0, :4].sin())
    assert torch.allclose(questions.target[:4], still, atol=1e-5)


def test_questions_are_a_function_of_the_step_alone():
    """A run that is resumed walks the live batches again, and a part of a step is what the whole step has there."""
    going, resumed = pool(teacher()), pool(teacher())
    for step in range(9):
        whole = going.ask(step, slice(0, 12))
    again = resumed.ask(8, slice(0, 12))
    assert torch.equal(whole.x, again.x)
    assert torch.equal(whole.target, again.target)
    part = pool(teacher()).ask(8, slice(3, 8))
    assert torch.allclose(part.x, whole.x[3:8], atol=1e-6)
    assert torch.equal(part.to, whole.to[3:8])

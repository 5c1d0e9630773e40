"""A run that distils is refused, resumed and marked as any other; questions lie on paths of the teacher's ODE."""

import numpy as np
import pytest
import torch

from ddib_fed import Model
from ddib_fed.diffusion.denoiser import LevelTable, Places
from ddib_fed.diffusion.plans import SolverSettings, decode
from ddib_fed.errors import SettingsInvalid, UsageError
from ddib_fed.lab.distil import Paths, Starts, asked, open_starts
from ddib_fed.lab.training import DistilConfig
from ddib_fed.models.bundle import make_bundle, pretrained
from ddib_fed.models.units import Normalisation
from ddib_fed.training.run import train
from tests.models.examples import manifest, state


def config(teacher="moons", **fields):
    usual = {"steps": 12, "batch": 64, "samples": 200, "teacher_evaluations": 12, "checkpoint_every": 4}
    return DistilConfig(teacher=str(teacher), **{**usual, **fields})


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A bundle of a few steps."""
    folder = tmp_path_factory.mktemp("distilled")
    return train(config(steps=60, batch=256, learning_rate=2e-3, ema=0.9, checkpoint_every=60), folder)


@pytest.mark.slow
def test_the_manifest_names_the_teacher_and_the_error(distilled):
    """Digest, and distances at 1, 2, 4 and 8 evaluations, both ways; another domain it is not."""
    made, teacher = distilled.manifest, pretrained("moons")
    assert made.distilled is not None
    assert (made.distilled.teacher, made.distilled.teacher_name) == (teacher.digest, "moons")
    assert [error.evaluations for error in made.distilled.errors] == [1, 2, 4, 8]
    for name in ("domain", "schedule", "normalisation"):
        assert getattr(made, name) == getattr(teacher.manifest, name)
    assert made.is_flow_map


@pytest.mark.slow
def test_a_few_steps_are_closer_to_the_teacher_than_its_own_few_steps(distilled):
    """After 60 steps of training 4 evaluations already beat the multistep solver's 4."""
    teacher = pretrained("moons")
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    exact = decode(noise, teacher.denoiser(), teacher.schedule, SolverSettings(evaluations=200))
    own, few = (
        decode(noise, made.denoiser(), made.schedule, SolverSettings(solver, evaluations=4))
        for made, solver in ((distilled, "flow-map"), (teacher, "unipc"))
    )
    assert float((own - exact).norm(dim=1).median()) < 0.5 * float((few - exact).norm(dim=1).median())


def test_a_teacher_that_is_only_called_after_a_domain_needs_its_points(tmp_path):
    """A file moons.npy whose points have units of their own; named, they come in the teacher's units."""
    units = Normalisation(mean=5.0, std=2.0)
    made = manifest().model_copy(update={"name": "moons", "normalisation": units})
    teacher = Model(make_bundle(made, state()))
    with pytest.raises(UsageError, match="none are given") as refused:
        open_starts(config(), teacher)
    assert ".npy file of its points" in refused.value.hint
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(5.0, 2.0, (400, 2)))
    found = open_starts(config(data=tmp_path / "x.npy"), teacher)
    assert found.held_out.mean() == pytest.approx(0.0, abs=0.3)
    assert found.held_out.std() == pytest.approx(1.0, abs=0.2)


def test_models_of_pictures_are_not_distilled(tmp_path):
    with pytest.raises(SettingsInvalid, match="networks of points") as refused:
        train(config("satellite"), tmp_path / "out")
    assert "ddib model tune" in refused.value.hint


TEACHER = make_bundle(manifest(), {name: 3 * value for name, value in state().items()})


def paths(evaluations=24):
    def take(u):
        return np.sin(37.0 * u[:, :1] + np.arange(2)).astype(np.float32)

    starts = Starts("own", take, take(np.random.default_rng(0).random((8, 4))))
    run = config(batch=12, seed=3, uses=2, teacher_evaluations=evaluations)
    return Paths(Model(TEACHER), starts, run, torch.device("cpu"))


def test_an_answer_takes_its_question_to_another_node_of_its_path():
    """x + (phi_s - phi_t) target is a node, whichever way it lies; without a span the target is the velocity."""
    found = paths()
    known = found.batch(0, slice(0, 6))
    u = torch.rand(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u[:4, 2] = 0.0
    questions = asked(known, u)
    phi = torch.atan(torch.exp(-torch.stack([questions.times, questions.to]).double()))
    reached = questions.x + (phi[1] - phi[0]).float()[:, None] * questions.target
    for k in range(12):
        nodes = known[k % 2].x[:, k // 2]
        assert float((nodes - questions.x[k]).abs().amax(1).min()) == 0.0
        assert float((nodes - reached[k]).abs().amax(1).min()) < 1e-5
    assert torch.equal(questions.times == questions.to, u[:, 2] < 0.125)
    assert {-1.0, 1.0} <= set(torch.sign(phi[1] - phi[0]).tolist())
    table = torch.stack([phi[0, :4].cos(), phi[0, :4].sin(), torch.zeros(4)], dim=1).double()
    places = Places.by_row(questions.x[:4], LevelTable(table), torch.arange(4))
    still = TEACHER.denoiser().at(questions.x[:4], places)
    assert torch.allclose(questions.target[:4], still, atol=1e-5)


def test_questions_are_a_function_of_the_step_alone():
    """A run that is resumed walks the live batches again, and a part of a step is what the whole step has there."""
    going = paths()
    for step in range(9):
        whole = going.ask(step, slice(0, 12))
    again = paths().ask(8, slice(0, 12))
    assert torch.equal(whole.x, again.x)
    assert torch.equal(whole.target, again.target)
    part = paths().ask(8, slice(3, 8))
    assert torch.allclose(part.x, whole.x[3:8], atol=1e-6)
    assert torch.equal(part.to, whole.to[3:8])

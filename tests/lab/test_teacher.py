"""Paths of a teacher, and what is asked of them: means between nodes that lie on one path of its ODE."""

from __future__ import annotations

import math

import numpy as np
import torch

from ddib_fed.diffusion.bridge import decode
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.lab.teacher import Pool, Starts, Teacher, asked
from ddib_fed.models.bundle import make_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.config import MlpConfig, build_network


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
    return Teacher(
        made or bundle(),
        begun or starts(),
        evaluations=evaluations,
        seed=3,
        batch=12,
        device=torch.device("cpu"),
    )


def pool(found, uses=2):
    return Pool(found, seed=3, batch=12, uses=uses, evaluations=24)


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
    assert torch.equal(questions.spans == 0.0, u[:, 2] < 0.125)
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

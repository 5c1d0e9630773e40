"""Legs of a distilled model: merged with others, under a calibration, and refused where a step is not known."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.model import DomainModel, check_decoding, check_encoding
from ddib_fed.engine.stack import Trajectory
from ddib_fed.errors import SettingsInvalid
from ddib_fed.guidance import Guidance
from ddib_fed.models.units import ChannelMap
from ddib_fed.networks.config import MlpConfig, UNetConfig
from tests.models.distilled_bundles import SMALL_UNET, distilled

FLOW_MAP = SolverSettings("flow-map", evaluations=4)


@pytest.fixture
def points() -> DomainModel:
    return DomainModel(distilled(MlpConfig(width=16, blocks=1, flow_map=True), (2,)))


@pytest.fixture
def pictures() -> DomainModel:
    network = UNetConfig(**SMALL_UNET, flow_map=True)
    return DomainModel(distilled(network, (3, 8, 8), time_input="scaled-lambda"))


def alone(model: DomainModel, trajectory: Trajectory) -> torch.Tensor:
    work = trajectory.on(model)
    return integrate(work.solver, work.denoiser)


@pytest.mark.parametrize("kind", ["points", "pictures"])
def test_steps_of_any_length_are_merged_with_velocities(kind, request):
    """Two lengths of steps and another solver share calls, and each ends where it ends alone."""
    model = request.getfixturevalue(kind)
    settings = [FLOW_MAP, SolverSettings("flow-map", evaluations=2), SolverSettings(evaluations=4)]
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(rows, *model.sample_shape, generator=generator) for rows in (3, 1, 2)]
    stages = ("encode", "decode", "decode")
    work = [Trajectory(stage, x, each) for stage, x, each in zip(stages, starts, settings, strict=True)]
    expected = [alone(model, trajectory) for trajectory in work]
    batcher = Batcher(model, rows=64)
    try:
        futures = [batcher.submit(trajectory) for trajectory in work]
        for future, answer in zip(futures, expected, strict=True):
            assert torch.allclose(future.result(60), answer, atol=1e-4)
    finally:
        batcher.close()


def test_a_calibration_turns_the_basis_of_the_steps(pictures):
    """In the rotated basis a leg ends at the rotated end."""
    rotation = ChannelMap(rotation=((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = alone(pictures, Trajectory("encode", x, FLOW_MAP))
    turned = alone(
        pictures, Trajectory("encode", pictures.into_basis(x, rotation), FLOW_MAP, calibration=rotation)
    )
    assert torch.allclose(pictures.out_of_basis(turned, rotation), plain, atol=1e-4)


def test_what_a_step_does_not_know_is_refused(pictures):
    """Another encoder, clipping, and a scene of several tiles are no part of the ODE that was distilled."""
    check_encoding(pictures, FLOW_MAP, None)
    check_decoding(pictures, FLOW_MAP, None)
    with pytest.raises(SettingsInvalid, match="the encoder mixed is no part of it"):
        check_encoding(pictures, SolverSettings("flow-map", evaluations=4, encoder="mixed"), None)
    with pytest.raises(SettingsInvalid, match="clipping is no part of it"):
        check_decoding(pictures, FLOW_MAP, None, Guidance(clip=True))
    scenes = DomainModel(pictures.bundle.of_scenes(16, 16))
    with pytest.raises(SettingsInvalid, match="a scene of several tiles is no part of it"):
        check_decoding(scenes, FLOW_MAP, None)
    check_decoding(scenes, SolverSettings(), None)

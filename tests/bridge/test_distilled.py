"""Legs of a distilled model: merged with others, under a calibration, and refused where a step is not known."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.bridge.domain_model import DomainModel
from ddib_fed.bridge.engine.batcher import Batcher
from ddib_fed.bridge.engine.trajectory import Trajectory
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import SettingsInvalid
from ddib_fed.guidance import Guidance
from ddib_fed.models.bundle import Bundle, make_bundle
from ddib_fed.models.channel_map import ChannelMap
from ddib_fed.models.manifest import Distilled, DistilledError, Manifest
from ddib_fed.networks.configs import MlpConfig, UNetConfig
from ddib_fed.networks.registry import build_network

FLOW_MAP = SolverSettings("flow-map", evaluations=4)
ERROR = DistilledError(evaluations=8, encode=0.1, encode_p95=0.2, decode=0.1, decode_p95=0.2, round_trip=0.1)
DISTILLED = Distilled(
    teacher="0" * 64,
    teacher_name="own",
    solver="unipc",
    evaluations=96,
    samples=10,
    grid="default",
    errors=(ERROR,),
)


def distilled(network: MlpConfig | UNetConfig, shape: tuple[int, ...], **fields) -> Bundle:
    """A flow map with random weights."""
    torch.manual_seed(0)
    module = build_network(network)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.1)
    kind = "point" if len(shape) == 1 else "picture"
    manifest = Manifest(
        name="own",
        domain="own",
        sample_kind=kind,
        sample_shape=shape,
        network=network,
        distilled=DISTILLED,
        **fields,
    )
    return make_bundle(manifest, module.state_dict())


@pytest.fixture
def points() -> DomainModel:
    return DomainModel(distilled(MlpConfig(width=16, blocks=1, flow_map=True), (2,)))


@pytest.fixture
def pictures() -> DomainModel:
    network = UNetConfig(
        image_size=8, model_channels=32, out_channels=3, num_res_blocks=1, channel_mult=(1,), norm_groups=8,
        spectral=True, flow_map=True,
    )  # fmt: skip
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
    pictures.check_encoding(FLOW_MAP, None)
    pictures.check_decoding(FLOW_MAP, None)
    with pytest.raises(SettingsInvalid, match="the encoder linear is no part of it"):
        pictures.check_encoding(SolverSettings("flow-map", evaluations=4, encoder="linear"), None)
    with pytest.raises(SettingsInvalid, match="clipping is no part of it"):
        pictures.check_decoding(FLOW_MAP, None, Guidance(clip=True))
    scenes = DomainModel(pictures.bundle.of_scenes(16, 16))
    with pytest.raises(SettingsInvalid, match="a scene of several tiles is no part of it"):
        scenes.check_decoding(FLOW_MAP, None)
    scenes.check_decoding(SolverSettings(), None)

"""What the policy, the version of a contract and the model allow of a Decode call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddib_fed.bridge.serving import ServingParty
from ddib_fed.diffusion import gaussianity
from ddib_fed.errors import (
    LatentNotGaussian,
    PolicyDenied,
    SettingsInvalid,
    UnknownFields,
)
from ddib_fed.latent import Latent
from ddib_fed.networks.configs import MlpConfig
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.wire.latent import approve
from ddib_fed.wire.latent_types import TYPE_NUMBERS
from ddib_fed.wire.version import SPOKEN, TRUST, Version
from tests.models.distilled_bundles import distilled
from tests.node.tiny_nodes import gaussian
from tests.target_node.conftest import Target
from tests.target_node.sending import header, results, sent


def test_a_latent_of_less_depth_is_no_noise_and_is_decoded_where_that_is_allowed(open_target, north) -> None:
    """The same numbers as a latent of the whole way are refused."""
    target = open_target(least_depth=0.5)
    contract, bad = target.negotiate(north), np.full((300, 2), 30, np.float32)
    with pytest.raises(LatentNotGaussian):
        target.decode(north, header(contract), *sent(contract, bad))
    half = header(contract, solver=common_pb2.SolverSettings(evaluations=8, depth=0.5))
    assert results(target.decode(north, half, *sent(contract, bad)))[0].shape == (300, 2)


@pytest.mark.parametrize("version", [Version(1, 4), max(SPOKEN)])
def test_a_call_for_fewer_evaluations_than_the_policy_demands_is_refused(open_target, north, version) -> None:
    """Under a contract that names the floor, and under an older one; not for a flow map, which is trained for few."""
    target = open_target(least_evaluations=12)
    contract = target.negotiate(north, versions=[version])
    assert contract.limits.min_evaluations == (12 if version >= TRUST else 0)
    with pytest.raises(PolicyDenied) as refused:
        target.decode(north, header(contract, solver=common_pb2.SolverSettings(evaluations=11)))
    assert refused.value.facts == {"policy": "least_evaluations", "evaluations": "11", "least": "12"}
    enough = header(contract, solver=common_pb2.SolverSettings(evaluations=12))
    assert results(target.decode(north, enough, *sent(contract, gaussian(30))))


def test_an_encoder_that_shows_more_is_refused_unless_allowed(open_target, north) -> None:
    """By the policy, and by a contract of a version that does not know it."""
    target = open_target()
    contract = target.negotiate(north)
    solver = common_pb2.SolverSettings(evaluations=8, encoder="mixed")
    with pytest.raises(PolicyDenied):
        target.decode(north, header(contract, solver=solver))
    older = target.negotiate(north, versions=[Version(1, 2)])
    with pytest.raises(UnknownFields):
        target.decode(north, header(older, solver=solver))


@pytest.mark.parametrize("setting", [{"grid": "learned"}, {"solver": "flow-map"}])
def test_names_of_later_solvers_are_refused_under_an_older_contract(target, north, setting) -> None:
    """The peer said that it does not know them; by 1.3 they have no meaning."""
    older = target.negotiate(north, versions=[Version(1, 3)])
    solver = common_pb2.SolverSettings(evaluations=8, **setting)
    with pytest.raises(UnknownFields):
        target.decode(north, header(older, solver=solver))


def test_steps_of_a_distilled_model_need_one(target, north, institutions, tmp_path) -> None:
    """A node whose model was not distilled says so; one whose model was takes the steps over the same wire."""
    solver = common_pb2.SolverSettings(evaluations=2, solver="flow-map")
    with pytest.raises(SettingsInvalid) as refused:
        target.decode(north, header(target.negotiate(north), solver=solver))
    assert (refused.value.facts["solver"], refused.value.facts["needs"]) == ("flow-map", "ddib model distil")
    own = distilled(MlpConfig(width=8, blocks=1, flow_map=True), (2,), std=0.0, domain="moons")
    engine = ServingParty(own, device="cpu", threads=1)
    other = Target(tmp_path / "distilled", institutions["south"], engine)
    try:
        contract = other.negotiate(north)
        latents = gaussian(30)
        (points,) = results(
            other.decode(north, header(contract, solver=solver), *sent(contract, latents, 0))
        ).values()
        np.testing.assert_allclose(points, latents, atol=1e-5)
    finally:
        other.close()
        engine.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_latents_are_decoded_where_the_policy_lists_them(open_target, north, dtype) -> None:
    """Both ways in the contract's type; the audit names the bytes that came; a policy without it refuses."""
    target = open_target(latent_types=f'["float32", "{dtype}"]')
    contract = target.negotiate(north, latent_types=[dtype])
    assert contract.wire_type == dtype
    latent = Latent.from_array(gaussian(30), dtype)
    approved = approve(latent, contract, gaussianity.measure(torch.from_numpy(latent.data.copy())), item=0)
    messages = list(approved.stream(pb.DecodeRequest))
    (points,) = results(target.decode(north, header(contract), *messages)).values()
    np.testing.assert_allclose(points, latent.data, atol=1e-5)
    answers = target.decode(north, header(contract, round_trip=True), *messages)
    back = [m.latent.tensor for m in answers if m.WhichOneof("message") == "latent"]
    assert [(t.dtype, t.size_bytes) for t in back] == [(TYPE_NUMBERS[dtype], latent.size_bytes)]
    assert latent.sha256.hex() in target.config.paths.audit.read_text()
    with pytest.raises(PolicyDenied) as caught:
        target.negotiate(north, latent_types=["bfloat16" if dtype == "float16" else "float16"])
    assert caught.value.facts["policy"] == "latent_types"

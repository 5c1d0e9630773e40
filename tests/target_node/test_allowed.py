"""What the policy and the model allow of a Decode call."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.errors import (
    LatentNotGaussian,
    PolicyDenied,
)
from ddib_fed.v1 import common_pb2
from tests.node.tiny_nodes import gaussian
from tests.target_node.sending import header, results, sent


def test_a_latent_of_less_depth_is_no_noise_and_is_decoded_where_that_is_allowed(open_target, north) -> None:
    """The same numbers as a latent of the whole way are refused."""
    target = open_target(least_depth=0.5)
    contract, bad = target.negotiate(north), np.full((300, 2), 30, np.float32)
    with pytest.raises(LatentNotGaussian):
        target.decode(north, header(contract), *sent(contract, bad))
    half = header(contract, solver=common_pb2.SolverSettings(evaluations=8, depth=0.5))
    assert results(target.decode(north, half, *sent(contract, bad)))[0].shape == (300, 2)


def test_a_call_for_fewer_evaluations_than_the_policy_demands_is_refused(open_target, north) -> None:
    """The contract names the floor, so that the source can hold itself to it."""
    target = open_target(least_evaluations=12)
    contract = target.negotiate(north)
    assert contract.limits.min_evaluations == 12
    with pytest.raises(PolicyDenied) as refused:
        target.decode(north, header(contract, solver=common_pb2.SolverSettings(evaluations=11)))
    assert refused.value.facts == {"policy": "least_evaluations", "evaluations": "11", "least": "12"}
    enough = header(contract, solver=common_pb2.SolverSettings(evaluations=12))
    assert results(target.decode(north, enough, *sent(contract, gaussian(30))))

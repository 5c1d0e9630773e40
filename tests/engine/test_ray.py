"""What the executor ray says when it cannot work."""

from __future__ import annotations

import importlib.util

import pytest

from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.ray_actors import ray_pool
from ddib_fed.errors import ExtraMissing, NotReady
from tests.e2e.harness import free_port
from tests.engine.orphans import children
from tests.engine.test_executors import ray_too
from tests.node.tiny_nodes import tiny_bundle


def test_without_ray_the_error_names_the_extra(monkeypatch):
    """And what can be done instead."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing) as caught:
        ray_pool(Recipe(tiny_bundle()), address="local")
    assert "-m pip install 'ray>=2.40', or " in caught.value.hint
    assert 'executor = "processes"' in caught.value.hint


@ray_too
@pytest.mark.slow
def test_a_head_that_does_not_answer_is_named_at_once():
    """Ray would try for a minute. The driver's process is gone."""
    before, address = set(children()), f"127.0.0.1:{free_port()}"
    with pytest.raises(NotReady, match="cannot be joined") as caught:
        ray_pool(Recipe(tiny_bundle()), address=address, workers=1)
    assert f"ray start --address {address}" in caught.value.hint
    assert caught.value.retry_after_s
    assert set(children()) <= before

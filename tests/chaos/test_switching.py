"""Models are activated and rolled back on running nodes under load: no call fails, and a job has one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.models.bundle import save_bundle
from tests.chaos.load import ITEMS, Feeder, check_books, restart, stub_pair
from tests.e2e.harness import ddib, wait_until
from tests.node.tiny_nodes import manifest, state

pytestmark = [pytest.mark.e2e, pytest.mark.promise("years"), pytest.mark.timeout(1_800)]


def test_models_are_switched_under_load(tmp_path: Path, amount, evidence) -> None:
    """At source and target, with a kill in between: each job's items were all encoded by one model, none fails."""
    pair = stub_pair(tmp_path)
    save_bundle(tmp_path / "next", manifest("next"), state())
    for node in (pair.north, pair.south):
        said = ddib("model", "install", tmp_path / "next", "--config", node.config_path)
        assert "installed" in said
    pair.start()
    feeder, switches = Feeder(pair), amount(2, 40)
    try:
        digest = said.split()[1]
        for number in range(switches):
            fed = len(feeder.accepted)
            wait_until(lambda fed=fed: len(feeder.accepted) > fed + 2, what="jobs between two switches")
            for node in (pair.north, pair.south):
                if number % 2:
                    ddib("model", "rollback", "--config", node.config_path)
                else:
                    ddib("model", "activate", digest[:10], "--config", node.config_path)
            if number % 4 == 1:
                pair.north.kill()
                restart(pair.north)
        feeder.stop()
        feeder.settle()
        check_books(pair, feeder)
        used = models_of_jobs(pair, feeder)
        assert len(used) == 2
        evidence.cases(2 * switches)
        evidence.figure(
            f"{len(feeder.accepted)} jobs over {2 * switches} switches, 0 failed; jobs by model {used}"
        )
    finally:
        feeder.stop()
        pair.stop()


def models_of_jobs(pair, feeder: Feeder) -> dict[str, int]:
    """How many jobs each model of the source encoded; a job has one."""
    used: dict[str, int] = {}
    with pair.client() as client:
        for job_id in feeder.accepted.values():
            results = list(client.fetch(job_id))
            assert len(results) == ITEMS
            (model,) = {result.provenance.source_model_sha256 for result in results}
            used[model[:8]] = used.get(model[:8], 0) + 1
    return used

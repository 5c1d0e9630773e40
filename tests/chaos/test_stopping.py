"""Nodes that are stopped under load, and clocks that are wrong: nothing accepted is lost."""

import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.security import pki
from ddib_fed.testing import START_S, NodeProcess
from tests.chaos.load import Feeder, check_books, restart, stub_pair
from tests.e2e.harness import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.promise("jobs"), pytest.mark.timeout(3_600)]

HOUR = timedelta(hours=1)


def test_sigterm_under_load(tmp_path: Path, amount, evidence) -> None:
    """SIGTERM to either node while a client submits: it exits with 0, and every accepted job is finished once."""
    chance, stops = random.Random(3), amount(2, 50)
    with stub_pair(tmp_path) as pair, Feeder(pair) as feeder:
        for number in range(stops):
            threading.Event().wait(chance.uniform(0.0, 0.6))
            node = (pair.source, pair.target)[number % 2]
            assert node.stop(START_S) == 0, node.log.read_text()
            restart(node)
        feeder.stop()
        feeder.settle()
        check_books(pair, feeder)
        evidence.cases(stops)
        evidence.figure(f"{len(feeder.accepted)} accepted jobs, 0 lost, 0 twice")


@pytest.mark.parametrize(
    ("where", "ahead"),
    [
        pytest.param("source", HOUR, id="fast-north"),
        pytest.param("target", -25 * HOUR, id="expired-south"),
        pytest.param("target", HOUR, id="fast-south", marks=pytest.mark.long),
        pytest.param("source", -25 * HOUR, id="expired-north", marks=pytest.mark.long),
        pytest.param("source", -HOUR, id="slow-north", marks=pytest.mark.long),
        pytest.param("target", -HOUR, id="slow-south", marks=pytest.mark.long),
    ],
)
def test_a_certificate_of_a_wrong_clock_ends_no_job(tmp_path, where, ahead, evidence):
    """Not valid for an hour yet, an hour old, or expired for an hour: the node replaces it by itself."""
    with stub_pair(tmp_path) as pair, Feeder(pair) as feeder:
        node: NodeProcess = getattr(pair, where)
        wait_until(lambda: len(feeder.accepted) > 1, what="jobs before")
        wrong = issued(node, ahead)
        # Connections of before go on; new ones meet the certificate.
        other = pair.source if where == "target" else pair.target
        other.kill()
        restart(other)
        fed = len(feeder.accepted)
        wait_until(lambda: len(feeder.accepted) > fed + 1, what="jobs with a good certificate")
        feeder.stop()
        if ahead != -HOUR:  # a new client hears at once that the clocks are apart, until the node has another
            wait_until(
                lambda: pki.load_identity(node.config.paths.pki).cert_chain_pem != wrong,
                seconds=60,
                what="another certificate",
            )
        feeder.settle()
        check_books(pair, feeder)
        evidence.figure(f"{len(feeder.accepted)} accepted jobs, 0 lost")


def issued(node: NodeProcess, ahead: timedelta) -> bytes:
    """The node's certificate as a clock makes it that is wrong by so much."""
    folder, moment = node.config.paths.pki, datetime.now(UTC) + ahead
    return pki.issue_to_folder(
        pki.load_authority(folder), folder, "node", "node-1", now=moment
    ).cert_chain_pem

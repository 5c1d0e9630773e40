"""A disk that is full, fails or can no longer be written, under load: nothing accepted is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ddib_fed.testing import NodeProcess, TwoNodes
from tests.chaos import disk
from tests.chaos.load import Feeder, check_books, check_told, stub_pair
from tests.e2e.harness import wait_until
from tests.e2e.processes import PLANT

pytestmark = [pytest.mark.e2e, pytest.mark.promise("jobs"), pytest.mark.timeout(1_800)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    folder = tmp_path_factory.mktemp("disk")
    made = stub_pair(folder)
    for node in made.both:
        node.environment = {
            PLANT: disk.PLANTED, disk.FILE: str(fault_file(node)), disk.STATE: str(node.config.paths.state),
        }  # fmt: skip
    with made:
        yield made


def fault_file(node: NodeProcess) -> Path:
    return node.folder / "disk.fault"


# A target that cannot write its audit log asks for half a minute; one such error is enough for the short form.
CASES = [("source", "ENOSPC"), ("source", "EIO"), ("source", "EROFS"), ("target", "EIO")]


@pytest.mark.parametrize(("where", "error"), CASES)
def test_a_disk_that_fails_for_a_while_loses_nothing(pair, where, error, amount, evidence):
    """ENOSPC, EIO or a read-only state folder under load, at the source or the target: jobs wait, and are finished."""
    node: NodeProcess = getattr(pair, where)
    errors = amount([error], 3 * ([error] if where == "source" else ["ENOSPC", "EIO", "EROFS"]))
    with Feeder(pair) as feeder:
        for error_now in errors:
            fed = len(feeder.accepted)
            wait_until(lambda fed=fed: len(feeder.accepted) >= fed + 2, what="jobs before the fault")
            fault_file(node).write_text(error_now)
            try:
                seen_by_clients_or_jobs(pair, feeder, where)
                assert node.state() != "down", node.log.read_text()
            finally:
                fault_file(node).unlink()
            fed = len(feeder.accepted)
            wait_until(lambda fed=fed: len(feeder.accepted) >= fed + 2, what="jobs after the fault")
    feeder.settle()
    check_fed(pair, feeder)
    evidence.cases(len(errors))
    accepted, refused = len(feeder.accepted), dict(feeder.refused)
    evidence.figure(
        f"{'/'.join(dict.fromkeys(errors))} at {where}: {accepted} jobs, 0 lost; refused {refused}"
    )


def seen_by_clients_or_jobs(pair: TwoNodes, feeder: Feeder, where: str) -> None:
    """Wait until the fault has been met: a submission was refused; or, at the target, a job was put back."""
    if where == "source":
        before = feeder.refused.total()
        wait_until(lambda: feeder.refused.total() > before, what="a refused submission")
        return
    said = pair.source.log
    size = said.stat().st_size
    wait_until(lambda: b" waits " in said.read_bytes()[size:], what="a job that waits for its peer")


def check_fed(pair: TwoNodes, feeder: Feeder) -> None:
    """The books; then the jobs go, so that the next test has books of its own."""
    check_books(pair, feeder)
    check_told(pair.source, feeder.accepted.values())
    with pair.client() as client:
        for job_id in feeder.accepted.values():
            client.delete(job_id)

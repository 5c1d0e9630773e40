"""A node is lost with its disk and comes back from a backup that was made while it worked."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.chaos.load import Feeder, check_books, lines_of, stub_pair
from tests.e2e.harness import Node, ddib, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.promise("years"), pytest.mark.timeout(900)]


def test_a_source_comes_back_from_a_backup_that_was_made_under_load(tmp_path: Path, evidence) -> None:
    """Jobs that were accepted before the backup are finished after it, peers and clients notice nothing else."""
    pair = stub_pair(tmp_path).start()
    feeder = Feeder(pair)
    backup, north = tmp_path / "north.tar", pair.north
    try:
        wait_until(lambda: len(feeder.accepted) > 5, what="jobs before")
        before = dict(feeder.accepted)
        ddib("backup", "--config", north.config_path, "--out", backup)
        feeder.stop()
        feeder.settle()  # a job whose answer was lost may be in the backup
        north.kill()
        model = tmp_path / "model"
        shutil.move(north.config.paths.bundle, model)
        shutil.rmtree(north.folder)
        ddib("restore", backup, "--out", north.folder)
        shutil.move(model, north.folder / "model")
        again = ended_later(north)
        north.start()
        with pair.client() as client:
            there = {job.job_id for job in client.list(1_000)}
        feeder.accepted = {request: job for request, job in feeder.accepted.items() if job in there}
        assert before.items() <= feeder.accepted.items()
        check_books(pair, feeder, again=again)
        evidence.figure(f"{len(there)} jobs in the backup, all finished")
    finally:
        feeder.stop()
        pair.stop()


def ended_later(node: Node) -> frozenset[str]:
    """Jobs that ended between the copies of the jobs and of the audit log: the restored node does them again."""
    with contextlib.closing(sqlite3.connect(node.config.paths.jobs)) as database:
        open_then = {row[0] for row in database.execute("SELECT job_id FROM jobs WHERE state != 'FINISHED'")}
    return frozenset(str(line["job"]) for line in lines_of(node) if line["act"] == "job_finished") & open_then

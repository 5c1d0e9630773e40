"""Jobs of bad files alone, and jobs that fail for a reason of their own."""

from __future__ import annotations

import json

import pytest

from ddib_fed.errors import ExitCode
from ddib_fed.v1 import translation_pb2 as pb


def fail_the_first_job(north, monkeypatch, *, items):
    """The first job has no result: each item failed, or the job itself with its items untouched."""
    view = north.service._view

    def failed(job_id, stored):
        job = view(job_id, stored)
        if job_id != next(iter(north.service.jobs)):
            return job
        job.state = pb.JOB_STATE_FAILED
        for item in job.items:
            item.state = pb.ITEM_STATE_FAILED if items else pb.ITEM_STATE_RECEIVED
            if items:
                item.error.reason, item.error.sentence = "LATENT_NOT_GAUSSIAN", "not noise"
        if not items:
            job.error.reason, job.error.sentence = "QUOTA", "the quota is spent"
        return job

    monkeypatch.setattr(north.service, "_view", failed)


def test_after_a_job_of_bad_files_alone_the_other_files_are_submitted(
    translate, north, written, few_files, capsys, monkeypatch
):
    """The first 250 files of a folder may all be of another modality."""
    fail_the_first_job(north, monkeypatch, items=True)
    assert translate("--skip-bad") == ExitCode.LEFT_OUT
    assert len(north.service.jobs) == 3
    assert len(written()) == 2 * 3
    assert "left out: 2 of 5 files; the others are in" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--skip-bad"], []])
def test_files_that_were_not_submitted_are_counted(
    translate, north, written, few_files, capsys, monkeypatch, more
):
    """Nothing more is sent after a job that failed for a reason of its own; without --skip-bad after bad files too."""
    fail_the_first_job(north, monkeypatch, items=not more)
    assert translate(*more, "--format", "json") == ExitCode.JOB_FAILED
    shown = capsys.readouterr()
    assert ("the quota is spent" if more else "LATENT_NOT_GAUSSIAN") in shown.err
    assert "1 of 5 files was not submitted" in shown.err
    assert len(json.loads(shown.out)["not_submitted"]) == 1
    assert len(north.service.jobs) == 2
    assert len(written()) == 2 * 2

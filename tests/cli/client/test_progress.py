"""Without a terminal a line is written now and then, with the job's id first."""

from __future__ import annotations

from ddib_fed.cli.folder_report import SAID_EVERY_S, ConsoleProgress
from ddib_fed.v1 import translation_pb2 as pb


def event(done: int, state: int = pb.JOB_STATE_RUNNING) -> pb.WatchJobResponse:
    return pb.WatchJobResponse(
        sequence=done + 1, state=state, item=done, stage="done", items_done=done, items=10
    )


def test_lines_come_now_and_then_with_the_job_first(capsys):
    """Ten events within the time make no line, the next one does; the end does at once."""
    now = [0.0]
    progress = ConsoleProgress(clock=lambda: now[0])
    with progress:
        progress.begin("job-1", [])
        for done in range(9):
            progress.event(event(done))
        assert capsys.readouterr().err == ""
        now[0] = SAID_EVERY_S
        progress.event(event(9))
        assert capsys.readouterr().err == "job job-1: running, 9 of 10 items done\n"
        progress.event(event(10, pb.JOB_STATE_FINISHED))
        assert capsys.readouterr().err == "job job-1: finished, 10 of 10 items done\n"

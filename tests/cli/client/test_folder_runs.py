"""`ddib translate FOLDER`: names, bad files, limits of the node, and how it goes on after an interruption."""

import json
import signal
import threading

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.client import folder_run
from ddib_fed.errors import ExitCode, NotFinite, QueueFull
from ddib_fed.files import locked
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import TARGET, npy, points


@pytest.fixture
def scans(tmp_path):
    """Five files in two folders."""
    folder = tmp_path / "scans"
    for number in range(5):
        path = folder / ("deep/er" if number % 2 else ".") / f"scan-{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(points(10, start=number)))
    return folder


@pytest.fixture
def words(north, scans, tmp_path):
    return ["translate", str(scans), "--to", TARGET, "--out", str(tmp_path / "out"),
            "--profile", str(north.profile_path)]  # fmt: skip


@pytest.fixture
def translate(words):
    return lambda *more: run([*words, *map(str, more)])


@pytest.fixture
def written(tmp_path):
    out = tmp_path / "out"
    return lambda: sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


@pytest.fixture
def few_files(monkeypatch):
    monkeypatch.setattr(folder_run, "JOB_FILES", 2)


pytestmark = pytest.mark.slow
RESULTS = sorted(
    f"{name}.{kind}"
    for name in ("scan-0", "scan-2", "scan-4", "deep/er/scan-1", "deep/er/scan-3")
    for kind in ("npy", "json")
)


def refuse_bad(north, bad):
    """Let the node refuse a job as the real one does: after it has all items, with those whose bytes are in `bad`."""
    taken = north.service.SubmitJob

    def submit(requests, context):
        messages = list(requests)
        numbers, number = [], -1
        for message in messages:
            number += message.WhichOneof("message") == "item"
            if message.WhichOneof("message") == "item" and message.data in bad:
                numbers.append(number)
        north.script.refuse.clear()
        if numbers:
            north.script.refuse["SubmitJob"] = error = NotFinite(facts={"item": numbers[0]})
            error.refused = dict.fromkeys(numbers, "NOT_FINITE")
        return taken(iter(messages), context)

    return submit


def test_paths_are_kept_below_the_folder_and_the_rest_is_counted(translate, scans, written, capsys):
    """Sub-folders are made; hidden files and other kinds are left out, and said."""
    (scans / "notes.txt").write_text("")
    (scans / ".hidden.npy").write_bytes(npy(points()))
    (scans / ".cache").mkdir()
    (scans / ".cache" / "old.npy").write_bytes(npy(points()))
    assert translate() == 0
    assert written() == RESULTS
    shown = capsys.readouterr()
    assert "ignored 3 other files (2 hidden, 1 .txt)" in shown.err
    assert "deep/er/scan-3.npy" in shown.out


def test_every_bad_file_is_listed_and_skip_bad_translates_the_others(
    translate, scans, north, written, capsys
):
    """Nothing is submitted; with --skip-bad the others are translated, and the exit code is its own."""
    (scans / "empty.npy").write_bytes(b"")
    (scans / "deep" / "text.npy").write_bytes(b"1, 2")
    assert translate() == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "2 of 7 files cannot be translated; nothing was submitted" in said
    for path in (scans / "empty.npy", scans / "deep" / "text.npy"):
        assert f"{path}: " in said
    assert not north.script.calls
    assert written() == []
    assert "without them: the same command with --skip-bad" in said
    assert translate("--skip-bad") == ExitCode.LEFT_OUT
    assert written() == RESULTS
    said = capsys.readouterr().err
    assert "left out: 2 of 7 files" in said
    assert f"{scans / 'empty.npy'}: does not begin as a .npy file does: it is empty" in said


def test_files_that_the_node_refuses_are_left_out_at_once(translate, scans, north, written, capsys):
    """The node names all of them in one answer, so the job is sent twice and not three times."""
    worst = [npy(np.full((2, 2), np.nan, np.float32)), npy(np.full((3, 2), np.nan, np.float32))]
    for number, content in enumerate(worst):
        (scans / f"nan-{number}.npy").write_bytes(content)
    north.service.SubmitJob = refuse_bad(north, worst)
    north.stop()
    north.start()
    assert translate() == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert f"{scans / 'nan-0.npy'}: " in said
    assert f"{scans / 'nan-1.npy'}: " in said
    assert not north.service.jobs
    assert translate("--skip-bad") == ExitCode.LEFT_OUT
    assert written() == RESULTS
    assert len(north.service.jobs) == 1


def test_jobs_are_as_small_as_the_node_wants_them(translate, north, written):
    """Its limit is in its refusal, comes with the header, and is asked for once."""
    north.script.most_items = 2
    assert translate() == 0
    assert len(north.script.seen("SubmitJob")) == 4
    assert sorted(len(job.inputs) for job in north.service.jobs.values()) == [1, 2, 2]
    assert written() == RESULTS


def test_a_full_queue_is_no_reason_to_leave_results_at_the_node(translate, north, written, few_files):
    """With a job at work its results are fetched first; the refused one is submitted afterwards."""
    seen = []

    def queue(called):
        seen.append(called)
        north.script.refuse.clear()
        if called == "SubmitJob" and seen.count("SubmitJob") == 2:
            north.script.refuse["SubmitJob"] = QueueFull(retry_after_s=60)

    north.script.on_call = queue
    assert translate() == 0
    assert written() == RESULTS
    assert seen[:3] == ["SubmitJob", "SubmitJob", "WatchJob"]


def test_what_was_removed_is_translated_again_and_what_changed_needs_force(translate, scans, north, tmp_path):
    """Of changed files and damaged results nothing is done without --force, which translates everything again."""
    assert translate() == 0
    (tmp_path / "out" / "scan-0.npy").unlink()
    (tmp_path / "out" / "scan-0.json").unlink()
    assert translate() == 0
    (scans / "scan-2.npy").write_bytes(npy(points(10, start=90)))
    assert translate() == ExitCode.CONFLICT
    assert translate("--force") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "scan-2.npy"), points(10, start=90) * 2)
    (tmp_path / "out" / "scan-4.npy").write_bytes(b"half")
    assert translate() == ExitCode.CONFLICT
    assert translate("--force") == 0
    assert [len(job.inputs) for job in north.service.jobs.values()] == [5, 1, 5, 5]


def interrupt_at(north, method, count):
    """Press Ctrl-C at the n-th call of a method."""
    main, hold, seen = threading.main_thread().ident, threading.Event(), []

    def interrupt(called):
        seen.append(called)
        if called == method and seen.count(method) == count:
            signal.pthread_kill(main, signal.SIGINT)
            hold.wait(2)

    north.script.on_call = interrupt


@pytest.mark.parametrize("method", ["SubmitJob", "AcknowledgeItems"])
def test_after_ctrl_c_the_same_command_computes_nothing_twice(
    north, translate, written, few_files, capsys, method
):
    """At any call of the second job: its items are each submitted once, and every result is there in the end."""
    interrupt_at(north, method, 2)
    assert translate() == ExitCode.CANCELLED
    north.script.on_call = lambda called: None
    assert "to resume: the same command again" in capsys.readouterr().err
    assert translate() == 0
    assert written() == RESULTS
    sent = sorted(data for job in north.service.jobs.values() for data in job.inputs)
    assert len(sent) == len(set(sent)) == 5


def test_a_file_that_changes_meanwhile_is_translated_as_it_is_now(translate, scans, north, tmp_path, capsys):
    """The job of its earlier content gives the other results; that one stays at the node, and is named."""
    assert translate("--detach") == 0
    (first,) = north.service.jobs
    (scans / "scan-0.npy").write_bytes(npy(points(10, start=90)))
    assert translate() == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "scan-0.npy"), points(10, start=90) * 2)
    assert [len(job.delivered) for job in north.service.jobs.values()] == [4, 1]
    assert f"ddib job delete {first}" in capsys.readouterr().err


def test_detached_jobs_are_attached_to(translate, north, written, few_files, capsys):
    """Three jobs are printed with their commands; the same command without --detach fetches them."""
    assert translate("--detach") == 0
    shown = capsys.readouterr().out
    assert len(north.service.jobs) == 3
    for job_id in north.service.jobs:
        assert f"ddib job fetch {job_id} --out " in shown
    assert shown.count(f"--profile {north.profile_path}") == 6
    assert translate("--format", "json") == 0
    assert len(north.service.jobs) == 3
    document = json.loads(capsys.readouterr().out)
    assert {job["job_id"] for job in document["jobs"]} == set(north.service.jobs)
    assert (document["files"], len(document["items"])) == (5, 5)
    assert written() == RESULTS


def test_a_second_run_into_the_folder_is_refused_at_once(translate, north, tmp_path, capsys):
    """When the other has ended, however it did, the folder is free."""
    with locked(tmp_path / "out"):
        assert translate() == ExitCode.CONFLICT
    said = capsys.readouterr().err
    assert f"another command is writing to {tmp_path / 'out'}" in said
    assert not north.script.calls
    assert translate() == 0


def test_what_a_killed_run_was_writing_is_removed(translate, tmp_path, written):
    """Hidden files with no other purpose; what somebody else keeps there stays."""
    out = tmp_path / "out" / "deep" / "er"
    out.mkdir(parents=True)
    (out / f".scan-1.npy.{'a' * 16}").write_bytes(b"ha")
    (out / f".notes.txt.{'a' * 16}").write_bytes(b"mine")
    assert translate() == 0
    assert [name for name in written() if name not in RESULTS] == [f"deep/er/.notes.txt.{'a' * 16}"]


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

"""`ddib translate` against a real server over mutual TLS: what is sent, written, acknowledged and said."""

import json
import signal
import threading

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import ExitCode, InternalError
from tests.client.scripted_source import TARGET, npy, points
from tests.small_disks import small_disk


@pytest.fixture
def translate(north, tmp_path):
    """Runs `ddib translate FILES... --to TARGET --out out`, with what else is given; the exit code."""

    def call(*words: object) -> int:
        return run(["translate", "--profile", str(north.profile_path), "--to", TARGET, "--out",
                    str(tmp_path / "out"), *map(str, words)])  # fmt: skip

    return call


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.npy"
    path.write_bytes(npy(points(100)))
    return path


def test_writes_results_and_provenance(translate, scan, tmp_path, capsys):
    """The translation, its round trip and its latent under the file's name, with digests in the record."""
    assert translate(scan, "--cycle", "--keep-latents", "--evaluations", 24, "--set", "solver=ddim") == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "scan.json", "scan.latent.npy", "scan.npy", "scan.returned.npy"
    ]  # fmt: skip
    np.testing.assert_array_equal(np.load(out / "scan.npy"), points(100) * 2)
    record = json.loads((out / "scan.json").read_text())
    assert record["input"] == "scan.npy"
    assert record["solver"] == {
        "solver": "ddim", "order": 0, "evaluations": 24, "grid": "default", "depth": 1.0, "share": 1.0,
        "temperature": 1.0,
        "blend": 0.0,
    }  # fmt: skip
    assert record["contract_sha256"] == "c" * 64
    assert record["cycle"] == {"median": 1e-4, "mean": 2e-4, "p99": 3e-3, "max": 0.5}
    assert len(record["files"]["translation"]["sha256"]) == 64
    shown = capsys.readouterr().out
    assert "scan.npy" in shown
    assert "0.003" in shown


def test_two_files_of_one_name_are_refused(translate, north, tmp_path, scan, capsys):
    """Their results would replace one another."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "scan.npy").write_bytes(npy(points()))
    assert translate(scan, tmp_path / "b" / "scan.npy") == ExitCode.USAGE
    assert "would both be written" in capsys.readouterr().err
    assert not north.script.calls


def test_files_whose_results_would_clash_are_named_by_their_suffix_too(translate, north, tmp_path, capsys):
    """scan.png beside scan.npy, and scan.returned.npy beside both: every one is translated, and its record names it."""
    north.script.pictures = True
    (given := tmp_path / "given").mkdir()
    (given / "scan.npy").write_bytes(npy(points(4)))
    (given / "scan.returned.npy").write_bytes(npy(points(5)))
    (given / "scan.png").write_bytes(encode_png(np.zeros((4, 4, 1), np.uint8)))
    assert translate(given) == 0
    said = capsys.readouterr().err
    assert "scan.npy as scan-npy, scan.png as scan-png" in said
    records = {
        path.stem: json.loads(path.read_text())["input"] for path in (tmp_path / "out").glob("[!.]*.json")
    }
    assert records == {
        "scan-npy": "scan.npy",
        "scan-png": "scan.png",
        "scan.returned-npy": "scan.returned.npy",
    }
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "scan-npy.npy"), points(4) * 2)
    north.script.calls.clear()
    assert translate(given) == 0
    assert not north.script.seen("SubmitJob")


def test_an_input_is_never_replaced(north, scan, tmp_path, capsys):
    """--out beside the inputs, even with --force."""
    words = ["--to", TARGET, "--out", str(tmp_path), "--force", "--profile", str(north.profile_path)]
    assert run(["translate", str(scan), *words]) == ExitCode.USAGE
    assert "would replace the input" in capsys.readouterr().err


def test_a_refused_job_leaves_nothing_behind(translate, scan, north, tmp_path):
    """No names of a job that never was, and no folder that this command made for it."""
    north.script.refuse["SubmitJob"] = InternalError()
    assert translate(scan) == ExitCode.INTERNAL
    assert not (tmp_path / "out").exists()


def test_a_translation_of_something_else_is_not_written(translate, scan, north, tmp_path, capsys):
    """Provenance must name the digest of what was sent."""

    def swap(messages):
        messages[0].result.provenance.input_sha256 = "0" * 64
        return messages

    north.script.tamper = swap
    assert translate(scan) == ExitCode.CORRUPT
    assert not (tmp_path / "out" / "scan.npy").exists()
    assert not north.script.seen("AcknowledgeItems")


@pytest.mark.slow
def test_ctrl_c_says_that_the_job_goes_on(translate, scan, north, capsys):
    """Interrupted while the node is at work: exit 12, and the commands that watch, fetch and cancel the job."""
    main, hold = threading.main_thread().ident, threading.Event()

    def interrupt(called):
        if called == "WatchJob":
            signal.pthread_kill(main, signal.SIGINT)
            hold.wait(2)

    north.script.on_call = interrupt
    assert translate(scan) == ExitCode.CANCELLED
    (job_id,) = north.service.jobs
    said = capsys.readouterr().err
    assert "continues at the source node" in said
    for command in ("watch", "fetch", "cancel"):
        assert f"ddib job {command} {job_id}" in said


def test_results_that_do_not_fit_are_fetched_later_by_the_same_command(north, tmp_path, capsys) -> None:
    """What was written stays; the node keeps the rest; nothing is acknowledged that is not on the disk."""
    files = []
    for number in range(3):
        path = tmp_path / f"scan-{number}.npy"
        path.write_bytes(npy(points(20_000, start=number)))
        files.append(str(path))
    with small_disk(tmp_path / "disk", 1) as disk:
        out = disk.folder / "out"
        disk.fill(leave=400_000)  # two of the results have 160 kB each, and their records
        words = ["--profile", str(north.profile_path), "--to", TARGET, "--out", str(out)]
        translate = ["translate", *files, *words]
        assert run(translate) == ExitCode.EXHAUSTED
        error = capsys.readouterr().err
        (job_id,) = north.service.jobs
        assert f"{out / 'scan-2.npy'} cannot be written: No space left on device" in error
        assert job_id in error
        assert "[DISK_FULL]" in error
        assert 2 not in north.service.jobs[job_id].delivered
        disk.free()
        assert run(translate) == 0
        np.testing.assert_array_equal(np.load(out / "scan-2.npy"), points(20_000, start=2) * 2)
        assert north.service.jobs[job_id].delivered == {0, 1, 2}
        assert not list(out.glob(".*"))


def test_file_names_stay_here(translate, scan, north):
    translate(scan)
    assert not any(b"scan" in request.SerializeToString() for _, request in north.script.calls)

"""`ddib job ...` and `ddib domains` against a real server over mutual TLS; `ddib web` as a process."""

import http.cookiejar
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import DomainNotFound, ExitCode
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import TARGET, SourceNodeDouble, npy, points


@pytest.fixture
def ddib(north):
    return lambda *words: run([*map(str, words), "--profile", str(north.profile_path)])


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.npy"
    path.write_bytes(npy(points(10)))
    return path


@pytest.fixture
def submitted(ddib, north, scan, tmp_path, capsys):
    """A job that was submitted to be fetched to `out`."""
    assert ddib("translate", scan, "--to", TARGET, "--out", tmp_path / "out", "--detach") == 0
    capsys.readouterr()
    (job_id,) = north.service.jobs
    return job_id


def test_domains_as_text_and_json(ddib, capsys):
    """Each target as --to takes it, and whether it is ready."""
    assert ddib("domains") == 0
    shown = capsys.readouterr().out
    assert TARGET in shown
    assert "PEER_UNREACHABLE" in shown
    assert ddib("domains", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["domains"][0]["status"] == "ready"


def test_fetches_under_the_names_of_the_submission(ddib, north, submitted, tmp_path):
    """Another process fetches: the names come from the hidden file, which then goes; elsewhere items have numbers."""
    assert ddib("job", "fetch", submitted, "--out", tmp_path / "elsewhere") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "elsewhere" / "item-0000.npy"), points(10) * 2)
    north.service.jobs[submitted].delivered.clear()
    assert ddib("job", "fetch", submitted, "--out", tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["scan.json", "scan.npy"]


def test_what_a_command_writes_is_its_users_alone(north, scan, tmp_path):
    """Results, records and their folders, whatever the umask: a result is as private as a picture."""
    words = ["translate", scan, "--to", TARGET, "--out", tmp_path / "new" / "out"]
    words += ["--profile", north.profile_path]
    script = [sys.executable, "-c", "from ddib_fed.cli.main import main; main()", *map(str, words)]
    subprocess.run(script, check=True, umask=0, capture_output=True)
    written = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert len(written) > 3
    assert [path for path in written if path.stat().st_mode & 0o077] == []


def test_results_that_the_node_removed_are_missed_in_another_folder(ddib, submitted, tmp_path, capsys):
    """Into their own folder again is no error; elsewhere there would be nothing, or less than all, without a word."""
    assert ddib("job", "fetch", submitted, "--out", tmp_path / "out") == 0
    assert ddib("job", "fetch", submitted, "--out", tmp_path / "out") == 0
    capsys.readouterr()
    assert ddib("job", "fetch", submitted, "--out", tmp_path / "elsewhere") == ExitCode.NOT_FOUND
    said = capsys.readouterr().err
    assert f"1 of 1 results of job {submitted} were fetched before" in said
    (command,) = re.findall(r"grep -rl .*? (?=~)", said)
    found = subprocess.run([*shlex.split(command), tmp_path], check=True, capture_output=True, text=True)
    assert found.stdout.split() == [str(tmp_path / "out" / "scan.json")]


@pytest.mark.parametrize("name", ["scan.npy", "scan.json"])
def test_fetching_does_not_overwrite_what_is_not_its_own(name, ddib, north, submitted, tmp_path):
    """Other content under the name: refused, and not acknowledged; --force replaces it."""
    (tmp_path / "out" / name).write_bytes(b"mine")
    assert ddib("job", "fetch", submitted, "--out", tmp_path / "out") == ExitCode.CONFLICT
    assert (tmp_path / "out" / name).read_bytes() == b"mine"
    assert not north.service.jobs[submitted].delivered
    assert ddib("job", "fetch", submitted, "--out", tmp_path / "out", "--force") == 0


def test_fetching_an_unfinished_job_says_so(ddib, north, submitted, tmp_path, capsys):
    """What is ready is fetched; the exit code says that more is to come."""
    north.service.jobs[submitted].state = pb.JOB_STATE_RUNNING
    north.script.fail_items = set()
    assert ddib("job", "fetch", submitted, "--out", tmp_path / "out") == ExitCode.CONFLICT
    said = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert f"try:  ddib job watch {submitted}" in said
    assert f"ddib job fetch {submitted} --out {tmp_path / 'out'}" in said


def test_watch_ends_with_the_jobs_state(ddib, submitted, capsys):
    """As text a last line, as JSON an event a line."""
    assert ddib("job", "watch", submitted) == 0
    assert f"job {submitted} is finished" in capsys.readouterr().out
    assert ddib("job", "watch", submitted, "--format", "json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["sequence"] for event in events] == [1, 2, 3, 4]
    assert events[-1]["state"] == "FINISHED"


def test_list_and_show(ddib, north, submitted, capsys):
    """Jobs newest first; one job with its items and why they failed."""
    assert ddib("job", "list") == 0
    assert submitted in capsys.readouterr().out
    north.script.fail_items = {0}
    assert ddib("job", "show", submitted) == 0
    assert "LATENT_NOT_GAUSSIAN" in capsys.readouterr().out
    assert ddib("job", "show", submitted, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["items"][0]["error"]["institution"] == "south.example"


def test_cancel_then_delete(ddib, north, submitted, capsys):
    assert ddib("job", "cancel", submitted) == 0
    assert "cancelled" in capsys.readouterr().out
    assert ddib("job", "delete", submitted) == 0
    assert not north.service.jobs


def test_a_misspelt_target_is_corrected(ddib, north, scan, tmp_path, capsys):
    """The node says that it knows none; the client, which one was meant."""
    north.script.refuse["SubmitJob"] = DomainNotFound()
    meant = TARGET.replace("board", "baord")
    assert ddib("translate", scan, "--to", meant, "--out", tmp_path / "out") == ExitCode.NOT_FOUND
    assert f"did you mean {TARGET}?" in capsys.readouterr().err


CODE = "from ddib_fed.cli.main import main; main()"


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_nothing_of_what_was_dropped_stays(tmp_path: Path, end: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a closed terminal remove the private folder, and are no error."""
    node = SourceNodeDouble(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-u", "-c", CODE, "web", "--profile", str(node.profile_path)]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            link = next(line.strip() for line in process.stdout if "token=" in line)
            browser = urllib.request.build_opener(
                urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
            )
            browser.open(link, timeout=60)
            at = link.split("start?", maxsplit=1)[0]
            origin = re.match(r"http://[^/]*", at)
            assert origin is not None
            request = urllib.request.Request(
                f"{at}files?name=scan.npy", data=npy(points()), headers={"Origin": origin[0]}
            )
            assert browser.open(request, timeout=60).status == 200
            (folder,) = temporary.iterdir()
            assert folder.stat().st_mode & 0o777 == 0o700
            assert [path.name for path in folder.rglob("*.npy")] == ["scan.npy"]
            process.send_signal(end)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            node.stop()
    assert not list(temporary.iterdir())

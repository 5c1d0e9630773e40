"""`ddib web` as a process: the printed link, and what is left when it ends."""

from __future__ import annotations

import http.cookiejar
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.client.scripted_source import SourceNodeDouble, npy, points

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

"""The researcher's page over a source node's double, through real mutual TLS."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ddib_fed.client.profile import Profile
from ddib_fed.web.researcher import Researcher
from tests.client.scripted_source import SourceNodeDouble


@pytest.fixture
def page(north: SourceNodeDouble, tmp_path: Path) -> Iterator[Researcher]:
    """Alice's page; results go to tmp_path/out."""
    folder = tmp_path / "dropped"
    folder.mkdir(mode=0o700)
    profile = Profile.load(north.profile_path)
    made = Researcher(profile, folder, tmp_path / "out")
    yield made
    made.close()
    for thread in threading.enumerate():
        if thread.name.startswith("job-"):
            thread.join(10)


@pytest.fixture
def browser(page: Researcher) -> TestClient:
    return TestClient(page.app())


@pytest.fixture
def finished(browser: TestClient) -> Callable[..., list[tuple[str, dict[str, Any]]]]:
    """Starts a translation of what was dropped, and reads its events to the end."""

    def translate(**order: object) -> list[tuple[str, dict[str, Any]]]:
        answer = browser.post("/jobs", json=order)
        assert answer.status_code == 200, answer.text
        return events(browser, answer.json()["job"])

    return translate


def events(browser: TestClient, job: int) -> list[tuple[str, dict[str, Any]]]:
    """(name, value) of every event of a job, until it has ended."""
    found, name, deadline = [], "", time.monotonic() + 150
    with browser.stream("GET", f"/jobs/{job}/events") as lines:
        for line in lines.iter_lines():
            assert time.monotonic() < deadline
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found

"""The page in a real Chromium, over two real nodes; skipped where the browser or axe-core is missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import Pair

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

ROOT = Path(__file__).parents[3]
AXE = ROOT / "build" / "web" / "axe.min.js"
PICTURES = ROOT / "docs" / "images" / "satellite"
INSTALL = "make test-web installs it"


def chromium() -> str | None:
    """The browser's program: $DDIB_CHROMIUM, or what is on the path."""
    named = os.environ.get("DDIB_CHROMIUM")
    return named or next(
        (path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, headless; not for longer, because while Playwright is open no other test can run an event loop."""
    pytest.importorskip("playwright", reason=f"no Playwright: {INSTALL}")
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        pytest.skip(f"no Chromium: {INSTALL}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def axe() -> str:
    if not AXE.exists():
        pytest.skip(f"no {AXE.relative_to(ROOT)}: {INSTALL}")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def nodes(browser: Browser) -> Iterator[Pair]:
    """North has satellite pictures, south relief maps; both serve."""
    del browser  # asked for first, so that no node starts where the test is skipped
    with tempfile.TemporaryDirectory(prefix="ddib-web-test-") as folder:
        pair = Pair.create(Path(folder), "relief", domain="satellite")
        try:
            yield pair.start()
        finally:
            pair.stop()


@pytest.fixture(scope="module")
def brains(browser: Browser) -> Iterator[Pair]:
    """North has T1 pictures of heads, south T2; both serve."""
    del browser
    with tempfile.TemporaryDirectory(prefix="ddib-web-test-") as folder:
        pair = Pair.create(Path(folder), "brain-t2", domain="brain-t1")
        try:
            yield pair.start()
        finally:
            pair.stop()


@contextmanager
def serving(*words: object) -> Iterator[str]:
    """A `ddib` command that serves a page, as a process; the link that it prints. Ends it with Ctrl-C."""
    code = "from ddib_fed.cli.main import main; main()"
    command = [sys.executable, "-u", "-c", code, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield next(line.strip() for line in process.stdout if "start?token=" in line)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0


Opened = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Opens a link in a new browser window; at the end nothing was loaded from elsewhere, and no script failed."""
    wrong: list[str] = []
    contexts = []

    def open_link(link: str, **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
        contexts.append(context)
        page = context.new_page()
        origin = link.split("/start?", maxsplit=1)[0].rpartition("/")[0]
        page.on("request", lambda each: each.url.startswith(origin) or wrong.append(f"loaded {each.url}"))
        page.on("pageerror", lambda each: wrong.append(f"script: {each}"))
        page.on("console", lambda each: wrong.append(f"console: {each.text}") if unexpected(each) else None)
        page.goto(link)
        page.wait_for_url(lambda url: "start?token" not in url)
        return page

    yield open_link
    for context in contexts:
        context.close()
    assert not wrong


def unexpected(message: ConsoleMessage) -> bool:
    return message.type == "error" and not message.text.startswith("Failed to load resource")


SERIOUS = {"serious", "critical"}


def findings(page: Page, axe: str) -> list[str]:
    """What axe-core finds that is serious: rule, and where. Its script is not subject to the page's policy."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert found["passes"], "axe-core checked nothing"
    return [
        f"{each['id']}: {', '.join(node['target'][0] for node in each['nodes'])}"
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))

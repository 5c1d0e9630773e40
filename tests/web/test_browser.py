"""The page in a real Chromium over two real nodes: keyboard, zoom, accessibility, and nothing from elsewhere.

Skipped where the browser or axe-core is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ddib_fed.testing import TwoNodes
from tests.e2e.harness import two_nodes
from tests.e2e.translation.test_formats import head as heads
from tests.formats.dicom.files import write_series

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

ROOT = Path(__file__).parents[2]
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


@contextmanager
def serving_pair(source: str, target: str) -> Iterator[TwoNodes]:
    with (
        tempfile.TemporaryDirectory(prefix="ddib-web-test-") as folder,
        two_nodes(Path(folder), source, target) as pair,
    ):
        yield pair


# Both ask for the browser first, so that no node starts where the test is skipped.
@pytest.fixture(scope="module")
def nodes(browser: Browser) -> Iterator[TwoNodes]:
    with serving_pair("satellite", "relief") as pair:
        yield pair


@pytest.fixture(scope="module")
def brains(browser: Browser) -> Iterator[TwoNodes]:
    with serving_pair("brain-t1", "brain-t2") as pair:
        yield pair


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
            assert process.wait(timeout=60) == 0


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


pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.filterwarnings("default")]
FINISHED_MS = 120_000
OUTLINES = """it => [it, it.closest('.choice')].filter(Boolean)
    .map(each => getComputedStyle(each))
    .map(style => style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth))"""
"""The width of what shows the focus, of an element and of the box that it is the control of."""
NARROW = {"viewport": {"width": 320, "height": 256}, "device_scale_factor": 4}
"""What a window of 1280 x 1024 has at 400 %."""


@pytest.fixture
def web(nodes: TwoNodes, tmp_path: Path) -> Iterator[str]:
    with serving("web", "--profile", nodes.profile, "--out", tmp_path / "out") as link:
        yield link


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until the element has the focus, which must be visible there."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("it => it === document.activeElement"):
            assert max(wanted.evaluate(OUTLINES)) >= 2, "the focus cannot be seen"
            return
    raise AssertionError(f"Tab never reaches {wanted}")


def translate(page: Page) -> None:
    page.set_input_files("#pick-files", sorted(PICTURES.glob("*.png")))
    page.get_by_role("button", name="Translate").click()
    page.get_by_text("Finished: 3 of 3").wait_for(timeout=FINISHED_MS)


def test_everything_works_with_the_keyboard(web: str, opened: Opened, tmp_path: Path) -> None:
    """From choosing files to comparing and downloading: no mouse."""
    page = opened(web)
    tab_to(page, page.locator("#pick-files"))
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(sorted(PICTURES.glob("*.png")))
    page.get_by_text("3 files").wait_for()
    tab_to(page, page.locator("input[name=target]:checked"))
    tab_to(page, page.locator("input[value=standard]"))
    tab_to(page, page.locator("#cycle"))
    tab_to(page, page.get_by_role("button", name="Translate"))
    page.keyboard.press("Enter")
    page.get_by_text("Finished: 3 of 3").wait_for(timeout=FINISHED_MS)
    tab_to(page, page.locator("#cut"))
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator("#stage").evaluate("it => it.style.getPropertyValue('--cut')") == "55%"
    assert "55 percent" in str(page.locator("#cut").get_attribute("aria-valuetext"))
    page.keyboard.press("End")
    assert page.locator("#translation").evaluate("it => getComputedStyle(it).clipPath").endswith("100%)")
    tab_to(page, page.locator("#scroll"))
    page.keyboard.press("Home")
    names = [page.locator("#h-view").inner_text()]
    for key in ("ArrowRight", "PageDown", "PageUp"):
        page.keyboard.press(key)
        names.append(page.locator("#h-view").inner_text())
    assert names == ["coast-1.png", "coast-2.png", "coast-3.png", "coast-2.png"]
    tab_to(page, page.locator("#one"))
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    (folder,) = (tmp_path / "out").iterdir()
    assert Path(download.value.path()).read_bytes() == (folder / "coast-2.png").read_bytes()
    tab_to(page, page.locator(".card").last)
    last = page.locator(".card").last.inner_text()
    page.keyboard.press("Enter")
    assert last.startswith(page.locator("#h-view").inner_text())


def test_a_folder_is_dropped_with_one_bad_file(web: str, opened: Opened, tmp_path: Path) -> None:
    """The bad one is named and left out; hidden files are not mentioned; the rest is ready."""
    folder = tmp_path / "scans"
    (folder / "inner").mkdir(parents=True)
    for number, path in enumerate(sorted(PICTURES.glob("*.png"))):
        (folder / "inner" / f"slice-{number}.png").write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".DS_Store").write_text("x")
    page = opened(web)
    page.set_input_files("#pick-folder", folder)
    page.get_by_text("3 files").wait_for()
    refused = page.locator("#refused-list li").all_inner_texts()
    assert len(refused) == 2
    assert any("scans/broken.png" in each for each in refused)
    assert any("scans/notes.txt" in each for each in refused)
    page.get_by_text("Show the files").click()
    page.get_by_role("button", name="Remove scans/inner/slice-1.png").click()
    page.get_by_text("2 files").wait_for()
    assert page.locator("#files li span:first-child").all_inner_texts() == [
        "scans/inner/slice-0.png",
        "scans/inner/slice-2.png",
    ]
    assert "slice-2" in str(page.evaluate("document.activeElement.getAttribute('aria-label')"))


def test_nothing_is_lost_when_zoomed(web: str, opened: Opened) -> None:
    """Nothing sticks out to the right, and every control can be reached and used."""
    page = opened(web, **NARROW)
    assert fits(page)
    translate(page)
    assert fits(page)
    for name in ("cut", "scroll", "one", "zip"):
        control = page.locator(f"#{name}")
        control.scroll_into_view_if_needed()
        box = control.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= NARROW["viewport"]["width"]
    page.locator(".card").last.click()
    assert page.locator("#h-view").evaluate("it => it.getBoundingClientRect().top < innerHeight")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(web: str, opened: Opened, axe: str, scheme: str) -> None:
    """On the page: at the start, with files and a refusal, with results one over the other and side by side."""
    page = opened(web, color_scheme=scheme)
    page.get_by_text("of south.example").wait_for()
    assert findings(page, axe) == []
    page.set_input_files("#pick-files", [PICTURES / "coast-1.png", Path(__file__)])
    page.get_by_text("1 file,").wait_for()
    page.get_by_text("Show the files").click()
    assert findings(page, axe) == []
    page.locator("#clear").click()
    translate(page)
    assert findings(page, axe) == []
    page.get_by_label("side by side").check()
    assert findings(page, axe) == []


def test_a_volume_is_scrolled(brains: TwoNodes, opened: Opened, axe: str, tmp_path: Path) -> None:
    """By wheel, keyboard and slider, source beside translation; with a warning, a download, and no finding of axe."""
    write_series(tmp_path / "head", heads().astype(int) * 4, BurnedInAnnotation="YES")
    with serving("web", "--profile", brains.profile, "--out", tmp_path / "out") as link:
        page = opened(link)
        page.set_input_files("#pick-folder", tmp_path / "head")
        page.get_by_text("3 files").wait_for()
        assert page.locator("#warnings").inner_text().startswith("Warning: head: burnt-in text")
        page.get_by_text("Volumes and maps").click()
        assert findings(page, axe) == []
        page.locator("input[value=draft]").check()
        page.get_by_role("button", name="Translate").click()
        page.get_by_text("Finished: 1 of 1 result").wait_for(timeout=FINISHED_MS)
        page.get_by_text("download 3 files (zip)").wait_for()
        page.locator("#scroll").focus()
        page.keyboard.press("Home")
        seen = [shown(page)]
        for key in ("ArrowRight", "PageDown", "PageDown", "PageUp"):
            page.keyboard.press(key)
            seen.append(shown(page))
        assert seen == [f"head/series-1, slice {n}" for n in (1, 2, 3, 3, 2)]
        assert page.locator("#scroll").get_attribute("aria-valuetext") == "2 of 3, head/series-1, slice 2"
        page.locator("#stage").hover()
        for way, slice_ in ((1, 3), (-1, 2), (-1, 1)):
            page.mouse.wheel(0, 120 * way)
            page.get_by_role("heading", name=f"head/series-1, slice {slice_}").wait_for()
        assert findings(page, axe) == []
        assert fits(page)
        with page.expect_download() as download:
            page.locator("#one").click()
        assert len(zipfile.ZipFile(download.value.path()).namelist()) == 3


def shown(page: Page) -> str:
    return page.locator("#h-view").inner_text()

"""Pages show the worst first, hold everything, and advise by their figures."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.engine.record import PictureFigures, Translation
from ddib_fed.evaluation.pages import (
    ShownFile,
    ShownFiles,
    SideFound,
    WayFound,
    advice,
    verdict,
    write_results,
)
from ddib_fed.models.manifest import Training
from ddib_fed.pages import TEMPLATES
from tests.runs.tiny_models import tiny

TARGET = "south.example/relief"


def picture(path, level=128, *, shape=(40, 30, 3), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full(shape, level, dtype)))
    return path


def shown(folder, name, psnr, **figures):
    record = Translation(job_id="job-1", picture=PictureFigures(cycle_psnr=psnr, **figures)).judged()
    return ShownFile(
        f"{name}.png", record, picture(folder / f"{name}.png"), picture(folder / "in" / f"{name}.png")
    )


@pytest.fixture
def results(tmp_path):
    files = [
        shown(tmp_path, "good", 41.5),
        shown(tmp_path, "sub/<b>bad & worse", 12.25),
        shown(tmp_path, "fair", 33.0),
    ]
    return ShownFiles(TARGET, 4, files, [("/scans/empty.png", "is empty")])


@pytest.fixture
def page(results, tmp_path):
    write_results(tmp_path / "report.html", tmp_path / "sheet.png", results)
    return (tmp_path / "report.html").read_text()


def test_the_worst_comes_first_with_its_mark(page):
    """Names are escaped, and link to the files beside the page."""
    names = re.findall(r'<a href="\./([^"]*)">([^<]*)</a>', page)
    assert names[0] == ("sub/%3Cb%3Ebad%20%26%20worse.png", html.escape("sub/<b>bad & worse.png"))
    assert [text for _, text in names[1:]] == ["fair.png", "good.png"]
    assert page.index("doubtful: round trip") < page.index("fair.png")


def test_the_verdict_counts_files_doubts_and_what_was_left_out(page, results):
    """The sentence is on top, and the reasons are in a table."""
    assert verdict(results) == "3 of 4 files are translated; doubtful: 1; left out or failed: 1."
    assert verdict(results) in page
    assert "<td>/scans/empty.png</td><td>is empty</td>" in page


def test_nothing_is_loaded_and_only_the_known_script_runs(page):
    """The policy names the script's digest; pictures are inside."""
    script = (TEMPLATES / "document.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert page.count("<script") == 1
    assert re.search(r"<script>(.*)</script>", page, re.DOTALL)[1] == script
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/") for source in sources)


def side(name="cats", **figures):
    manifest = tiny(name).manifest.model_copy(update={"training": Training(figures=figures)})
    return SideFound(Path(name), (), manifest, Path("out"), b"", b"", None, (0.5, 0.4, 0.405))


def way(title="cats to dogs", **medians):
    medians = {"cycle_psnr": 40.0, "edge_correlation": 0.6} | medians
    report = {
        "spread": {key: {"median": value, "chance": 0.09} for key, value in medians.items()},
        "ways": {},
    }
    return WayFound(title, Path("out/a-to-b"), report, b"")


GOOD = (side(), side("dogs"))
WAYS = (way(), way("dogs to cats"))


def test_where_nothing_stands_out_nothing_is_wrong():
    """The last piece of advice is always how to go on; what was not measured gives none."""
    bare = WayFound("bare", Path("out"), {"spread": {}, "ways": {}, "latent": None}, b"")
    for ways in (WAYS, (bare, WAYS[1])):
        found = advice(GOOD, ways, ())
        assert found[0].startswith("Nothing stands out")
        assert "ddib translate FOLDER --source" in found[-1]
        assert len(found) == 2


@pytest.mark.parametrize(
    ("sides", "ways", "said"),
    [
        ((replace(GOOD[0], held_out_losses=(0.5, 0.3, 0.4)), GOOD[1]), WAYS, "rose from 0.3000 to 0.4000"),
        ((replace(GOOD[0], held_out_losses=(0.5, 0.4, 0.3)), GOOD[1]), WAYS, "still falling"),
        (
            (side(nearest_training_picture=0.01, nearest_training_picture_held_out=0.1), GOOD[1]),
            WAYS,
            "repeats its pictures",
        ),
        (GOOD, (way(cycle_psnr=21.0), WAYS[1]), "21.0 dB"),
        (GOOD, (way(edge_correlation=0.1), WAYS[1]), "hardly any structure"),
    ],
)
def test_each_piece_of_advice_follows_from_its_figure(sides, ways, said):
    found = advice(sides, ways, ())
    assert said in found[0]
    assert len(found) == 2

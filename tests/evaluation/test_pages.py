"""Folders of translations are read whole; pages show the worst first and advise by figures, sheets the very pixels."""

import base64
import hashlib
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation.pages import SideFound, WayFound, advice, preview, verdict, write_results
from ddib_fed.evaluation.sheets import DOUBT, contact_sheet, to_pixels
from ddib_fed.evaluation.translations import FoundPicture, find_pictures, read_translations
from ddib_fed.figures import evaluate
from ddib_fed.model import Model
from ddib_fed.models.manifest import Training
from ddib_fed.pages import TEMPLATES
from ddib_fed.record import Part, PictureFigures, Record, Settings, WrittenFile
from tests.runs.picture_folders import blocks, record, write
from tests.runs.tiny_models import tiny


def test_pictures_are_paired_by_name_whatever_the_suffix_and_order(tmp_path):
    x = blocks(3)
    write(tmp_path / "t", x, names=["b", "sub/c", "a"])
    np.save(tmp_path / "a.npy", to_pixels(x)[2])
    truth = write(tmp_path / "truth", -x[:2], names=["b", "sub/c"])
    (tmp_path / "a.npy").rename(truth / "a.npy")
    found = read_translations(tmp_path / "t", truth=truth)
    assert found.names == ("a", "b", "sub/c")
    assert found.translated == pytest.approx(x[[2, 0, 1]], abs=0.01)
    assert found.truth == pytest.approx(np.stack([x[2], -x[0], -x[1]]), abs=0.01)


def test_records_say_which_files_are_translations(tmp_path):
    """Neither what came back, nor a sheet, nor a map is one."""
    for name in ("x", "y"):
        write(tmp_path, blocks(3), names=[name, f"{name}_back", f"{name}_uncertainty"])
        record(tmp_path, name, files={"returned": f"{name}_back.png"})
    write(tmp_path, blocks(1), names=["sheet"])
    (tmp_path / "report.json").write_text("{}")
    found = read_translations(tmp_path)
    assert found.names == ("x", "y")
    assert found.back == pytest.approx(blocks(3)[[1, 1]], abs=0.01)
    assert found.source is None


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", 7])
def test_a_record_names_no_file_elsewhere(tmp_path, name):
    folder = write(tmp_path / "inside", blocks(1))
    write(tmp_path, blocks(1), names=["outside"])
    record(folder, "p00", translated=name)
    [found] = find_pictures(folder)  # as a picture without a record
    assert found.record.files == {}


@pytest.mark.parametrize(("span", "kind"), [((0, 4095), np.uint16), ((-1000, 3000), np.int16)], ids=str)
def test_ranges_in_the_records_are_those_of_the_pictures(tmp_path, span, kind):
    """12 bits in files of 16, and signed raw values: by the files' types, figures would be of other pictures."""
    x, (low, high) = blocks(1), span
    raw = np.rint((x[0, 0] + 1) / 2 * (high - low) + low)
    (tmp_path / "t").mkdir()
    for name in ("ct", "ct_back"):
        (tmp_path / "t" / f"{name}.png").write_bytes(encode_png((raw - low).astype(np.uint16)[..., None]))
    ranges = {"source_low": low, "source_high": high, "low": low, "high": high}
    scales = {"slope": 1.0, "intercept": low, "back_slope": 1.0, "back_intercept": low}
    record(tmp_path / "t", "ct", files={"returned": "ct_back.png"}, **scales, **ranges)
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "ct.npy", raw.astype(kind))
    found = read_translations(
        tmp_path / "t", source=tmp_path / "source", truth=tmp_path / "source", domain=tmp_path / "source"
    )
    for stack in (found.translated, found.source, found.truth, found.back, found.domain):
        assert stack == pytest.approx(x, abs=0.001)


def test_volumes_are_measured_in_three_dimensions_and_shown_by_their_middle_slices(tmp_path):
    """Round trip, likeness, edges and feature distance; other sizes are refused, not resized."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 256, (4, 8, 12, 10), dtype=np.uint8)
    made = np.clip(truth + generator.integers(-9, 10, truth.shape), 0, 255).astype(np.uint8)
    for folder, volumes in (("t", made), ("truth", truth), ("domain", truth[::-1])):
        (tmp_path / folder).mkdir()
        for number, each in enumerate(volumes):
            np.save(tmp_path / folder / f"{number}.npy", each)
    places = {"source": tmp_path / "truth", "truth": tmp_path / "truth", "domain": tmp_path / "domain"}
    figures = evaluate(tmp_path / "t", **places)
    report = figures.report
    assert report["shape"] == [1, 8, 12, 10]
    error = np.square((made.astype(float) - truth) / 127.5).mean()
    assert report["ways"]["translated"]["mse"]["value"] == pytest.approx(error, rel=1e-5)
    assert 0.9 < report["ways"]["translated"]["ssim"]["value"] < 1
    assert 0.9 < report["spread"]["edge_correlation"]["median"] < 1
    assert report["ways"]["translated"]["partner_pixels"]["value"] == 1
    assert {"sharpness", "frechet_early"} <= report["ways"]["translated"].keys()
    figures.write_page(tmp_path / "page.html", "volumes")
    drawn = preview(tmp_path / "t" / "0.npy", 96, (0, 255))
    assert drawn.shape == (12, 10 + 10 + 12, 3)
    np.testing.assert_array_equal(drawn[:12, :10, 0], made[0, 4])
    np.testing.assert_array_equal(drawn[:8, 10:20, 0], made[0, ::-1, 6])
    np.save(tmp_path / "truth" / "0.npy", truth[0, 1:])
    with pytest.raises(ShapeMismatch, match=r"0\.npy is of \(7, 12, 10\)"):
        evaluate(tmp_path / "t", truth=tmp_path / "truth")


def test_what_the_files_show_is_measured(tmp_path):
    """Whatever the records say; their marks stay, where no thresholds are given."""
    translated, source = write(tmp_path / "t", -blocks(2), names=["a", "b"]), tmp_path / "s"
    write(source, blocks(2), names=["a", "b"])
    write(translated, blocks(2), names=["a_back", "b_back"])
    for name in ("a", "b"):
        kept = {"edge_correlation": 0.1, "structure_doubtful": name == "b"}
        record(translated, name, files={"returned": f"{name}_back.png"}, **kept)
    report = evaluate(translated, source=source).report
    assert set(report["measured"]) == {"cycle_mse", "cycle_psnr", "edge_correlation"}
    assert report["spread"]["cycle_psnr"]["min"] == 120.0
    assert report["spread"]["edge_correlation"]["min"] == pytest.approx(1.0, abs=0.01)
    assert [row["doubtful"] for row in report["pictures"]] == [False, True]


def test_the_page_shows_the_worst_first_and_says_what_it_leaves_out(tmp_path):
    """With the calibration, and how many pictures were translated under it."""
    write(tmp_path / "t", blocks(3))
    for number, psnr in enumerate((33.0, 31.0, 35.0)):
        kept = {"edge_correlation": 0.5, "structure_doubtful": number == 1}
        record(tmp_path / "t", f"p{number:02}", cycle_psnr=psnr, **kept)
    named = {"calibration_sha256": "ab" * 32, "calibration_kind": "rotation"}
    files = {"translation": WrittenFile(file="p02.png")}
    (tmp_path / "t" / "p02.json").write_bytes(Record(files=files, **named).to_json())
    evaluate(tmp_path / "t").write_page(tmp_path / "page.html", "<t>", most_rows=2)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;t&gt;" in page
    assert page.index("p01") < page.index(">p00<")
    assert ">p02<" not in page
    assert "1 more are left out here." in page
    assert page.count("data:image/png;base64,") == 2
    assert "1 of 3 pictures were translated under the rotation calibration abababababab." in page


TARGET = "south.example/relief"


def picture(path, level=128, *, shape=(40, 30, 3), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full(shape, level, dtype)))
    return path


def shown(folder, name, psnr, **figures):
    record = Record(job_id="job-1", picture=PictureFigures(cycle_psnr=psnr, **figures)).judged()
    source = picture(folder / "in" / f"{name}.png")
    return FoundPicture(f"{name}.png", picture(folder / f"{name}.png"), record, {Part.SOURCE: source})


@pytest.fixture
def results(tmp_path):
    return [
        shown(tmp_path, "good", 41.5),
        shown(tmp_path, "sub/<b>bad & worse", 12.25),
        shown(tmp_path, "fair", 33.0),
    ]


@pytest.fixture
def page(results, tmp_path):
    missing = [("/scans/empty.png", "is empty")]
    write_results(tmp_path / "report.html", TARGET, 4, results, missing)
    return (tmp_path / "report.html").read_text()


def test_the_worst_comes_first_with_its_mark(page):
    """Names are escaped, and link to the files beside the page."""
    names = re.findall(r'<a href="\./([^"]*)">([^<]*)</a>', page)
    assert names[0] == ("sub/%3Cb%3Ebad%20%26%20worse.png", html.escape("sub/<b>bad & worse.png"))
    assert [text for _, text in names[1:]] == ["fair.png", "good.png"]
    assert page.index("doubtful: round trip") < page.index("fair.png")


def test_the_verdict_counts_files_doubts_and_what_was_left_out(page, results):
    assert verdict(4, results, 1) == "3 of 4 files are translated; doubtful: 1; left out or failed: 1."
    assert verdict(4, results, 1) in page
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


FEW = Settings("unipc", 3, 3)


def test_samples_are_numbered_files_in_a_sheet_and_a_report(tmp_path):
    """The first are the same however many are drawn."""
    model = Model(tiny())
    model.draw(tmp_path / "many", 11, FEW, seed=5)
    report = model.draw(tmp_path / "few", 2, FEW, seed=5)
    assert report["pictures"] == ["sample_0.png", "sample_1.png"]
    assert json.loads((tmp_path / "few" / "report.json").read_text()) == report
    assert (tmp_path / "few" / "sheet.png").exists()
    few, many = (read_image(tmp_path / name).pixels for name in ("few/sample_1.png", "many/sample_01.png"))
    assert np.abs(few.astype(int) - many).max() <= 1


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def flat(count, level, *, size=32, channels=1):
    return np.full((count, channels, size, size), level, np.float32)


def places(sheet, colour):
    rows, columns = np.nonzero((sheet == np.array(colour)).all(axis=2))
    return len(rows), rows.min(), rows.max(), columns.min(), columns.max()


def test_stages_stand_beneath_one_another_and_pictures_beside():
    """Ten pictures in bands of four: three bands, each with both stages."""
    red, green = (
        np.stack([flat(10, 1)[:, 0] * s for s in signs], axis=1) for signs in ((1, -1, -1), (-1, 1, -1))
    )
    sheet = opened(contact_sheet({"source": red, "target": green}, across=4))
    count, top, _, left, right = places(sheet, (255, 0, 0))
    assert count == 10 * 96 * 96
    assert places(sheet, (0, 255, 0))[1] == top + 100
    assert right - left + 1 == 4 * 100 - 4
    changes = np.diff((sheet[:, left] == (255, 0, 0)).all(axis=1).astype(int))
    assert (changes == 1).sum() == 3


def test_a_doubtful_picture_is_framed():
    plain = opened(contact_sheet({"a": flat(3, 0)}, names=["x", "y", "z"], doubtful=[False] * 3))
    marked = opened(contact_sheet({"a": flat(3, 0)}, names=["x", "y", "z"], doubtful=[False, True, False]))
    assert not (plain == np.array(DOUBT)).all(axis=2).any()
    _, _, _, left, right = places(marked, DOUBT)
    assert 96 < right - left < 104

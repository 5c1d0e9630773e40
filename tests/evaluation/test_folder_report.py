"""A folder's report: measured where it can be, the records' figures where not."""

import numpy as np
import pytest

from ddib_fed.engine.record import Translation, WrittenFile
from ddib_fed.evaluation.folder import Folders, evaluate_folder
from ddib_fed.evaluation.pages import write_report_page
from tests.runs.picture_folders import blocks, record, write


def test_what_the_files_do_not_show_is_taken_from_the_records(tmp_path):
    write(tmp_path, blocks(3))
    for number, name in enumerate(("p00", "p01", "p02")):
        record(tmp_path, name, cycle_psnr=30.0 + number)
    report, _ = evaluate_folder(Folders(tmp_path))
    assert report["cycle"]["psnr"] == {"median": 31.0, "mean": 31.0, "min": 30.0, "max": 32.0}
    assert report["cycle"]["from"] == report["structure"]["from"] == report["latent"]["from"] == "records"
    assert report["structure"]["doubtful"] == 0
    assert report["latent"]["std"] == pytest.approx(1.0)
    assert report["pictures"][1]["name"] == "p01"
    assert report["pictures"][1]["cycle_psnr"] == 31.0


def test_what_the_files_show_is_measured(tmp_path):
    """Whatever the records say; their marks stay, where no thresholds are given."""
    translated, source = write(tmp_path / "t", -blocks(2), names=["a", "b"]), tmp_path / "s"
    write(source, blocks(2), names=["a", "b"])
    write(translated, blocks(2), names=["a_back", "b_back"])
    for name in ("a", "b"):
        kept = {"edge_correlation": 0.1, "mutual_information": 0.1, "structure_doubtful": name == "b"}
        record(translated, name, files={"returned": f"{name}_back.png"}, **kept)
    report, _ = evaluate_folder(Folders(translated, source=source))
    assert report["cycle"]["from"] == report["structure"]["from"] == "files"
    assert report["cycle"]["psnr"]["min"] == 120.0
    assert report["structure"]["edge_correlation"]["min"] == pytest.approx(1.0, abs=0.01)
    assert [row["doubtful"] for row in report["pictures"]] == [False, True]


def test_kept_latents_are_measured_together_beside_noise(tmp_path):
    write(tmp_path, blocks(4))
    z = np.random.default_rng(0).normal(size=(4, 1, 32, 32)).astype(np.float32)
    for number in range(4):
        np.save(tmp_path / f"p{number:02}_latent.npy", z[number])
        record(tmp_path, f"p{number:02}", files={"latent": f"p{number:02}_latent.npy"})
    report, _ = evaluate_folder(Folders(tmp_path))
    assert report["latent"]["from"] == "files"
    assert report["latent"]["ratio"] == pytest.approx(1.0, abs=0.15)


def test_a_plain_folder_has_what_its_pictures_show(tmp_path):
    write(tmp_path / "t", blocks(5))
    write(tmp_path / "truth", blocks(5))
    write(tmp_path / "domain", blocks(8, seed=1))
    report, _ = evaluate_folder(Folders(tmp_path / "t", truth=tmp_path / "truth", domain=tmp_path / "domain"))
    assert report["paired"]["psnr"]["min"] == 120.0
    assert report["features"]["distance"]["translated"] == report["features"]["distance"]["truth"]
    assert report["cycle"] is report["structure"] is report["latent"] is None


def test_the_page_shows_the_worst_first_and_says_what_it_leaves_out(tmp_path):
    write(tmp_path / "t", blocks(3))
    for number, psnr in enumerate((33.0, 31.0, 35.0)):
        kept = {"edge_correlation": 0.5, "mutual_information": 1.0, "structure_doubtful": number == 1}
        record(tmp_path / "t", f"p{number:02}", cycle_psnr=psnr, **kept)
    report, found = evaluate_folder(Folders(tmp_path / "t"))
    write_report_page(tmp_path / "page.html", "<t>", report, found, most_rows=2)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;t&gt;" in page
    assert page.index("p01 (doubtful)") < page.index(">p00<")
    assert ">p02<" not in page
    assert "1 more are left out here." in page
    assert page.count("data:image/png;base64,") == 2
    assert "Doubtful: 1 of 3." in page


def test_the_calibration_is_named_on_the_page(tmp_path):
    """With how many pictures were translated under it."""
    write(tmp_path, blocks(3))
    for name in ("p00", "p01", "p02"):
        named = {"calibration_sha256": "ab" * 32, "calibration_kind": "rotation"} if name != "p01" else {}
        files = {"translation": WrittenFile(file=f"{name}.png")}
        (tmp_path / f"{name}.json").write_bytes(Translation(files=files, **named).to_json())
    report, found = evaluate_folder(Folders(tmp_path))
    said = "2 of 3 pictures were translated under the rotation calibration abababababab."
    assert report["notes"] == [said]
    write_report_page(tmp_path / "page.html", "title", report, found)
    assert said in (tmp_path / "page.html").read_text()

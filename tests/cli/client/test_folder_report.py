"""What a command says of its progress, and where its page goes."""

import html
import re

import numpy as np
import pytest

from ddib_fed import Event, Run
from ddib_fed.cli.folder_report import report_run
from ddib_fed.client.files import LeftOut
from ddib_fed.client.parts import WrittenStudy
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import Delivered
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import ImageUnreadable
from ddib_fed.protocol.messages import JobState
from ddib_fed.record import Part, PictureFigures, Record


def run(out, names, *, left_out=(), records=()):
    """Pictures of these names in a folder, as a command leaves them."""
    delivered = {}
    for number, name in enumerate(names):
        path = out / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.full((8, 8, 1), 20 * number, np.uint8)))
        record = records[number] if records else Record(picture=PictureFigures(cycle_psnr=40.0 - number))
        record = record.judged()
        delivered[name] = Delivered(number, f"{name}.tif", {Part.TRANSLATION: path}, path, record)
    made = Run(Profile.model_construct(), "south.example/relief", out, left_out=list(left_out))
    made.total, made.results = len(names) + len(left_out), delivered
    return made


def there(out):
    return sorted(path.name for path in out.iterdir())


def test_two_pictures_have_a_page(tmp_path):
    """With what was left out; the same command writes the same one again."""
    bad = LeftOut(tmp_path / "bad.tif", ImageUnreadable("is empty"))
    found = run(tmp_path, ["a", "sub/b"], left_out=[bad])
    for _ in range(2):
        assert found.page() == tmp_path / "report.html"
        assert there(tmp_path) == ["a.png", "report.html", "sub"]
    page = (tmp_path / "report.html").read_text()
    assert "2 of 3 files are translated" in page
    assert str(bad.path) in page
    assert 'href="./sub/b.png"' in page


def test_a_report_that_somebody_wrote_is_left_alone(tmp_path):
    (tmp_path / "report.html").write_text("<html>mine</html>")
    found = run(tmp_path, ["a", "b"])
    for _ in range(2):
        assert found.page() == tmp_path / "report-1.html"
    assert (tmp_path / "report.html").read_text() == "<html>mine</html>"


EDGES = {"edge_correlation": 0.1, "least_edge_correlation": 0.2}
MAP = {"edge_correlation": 0.8, "least_edge_correlation": 0.2, "most_differs": 0.3}


@pytest.mark.parametrize(
    ("figures", "calibration", "seen", "repair"),
    [
        (EDGES, "", "Edges agree with the original no better than in an unrelated picture", "ddib calibrate ("),
        (EDGES, "ab", "Edges agree with the original no better than in an unrelated picture", "dial"),
        (MAP | {"differs": 0.4}, "ab", "As much differs from the calibration's map of the original", "dial"),
        ({"edge_correlation": 0.8}, "ab", "Its calibration was used although", "More pictures"),
        (MAP | {"differs": 0.1}, "ab", "Its calibration was used although", "More pictures"),
    ],
)  # fmt: skip
def test_a_doubt_is_what_was_seen_and_what_repairs_it(figures, calibration, seen, repair, tmp_path, capsys):
    """One sentence for each case, on the terminal and on the page; a picture without doubt is not named."""
    bad = PictureFigures(structure_doubtful=True, **figures)
    good = PictureFigures(structure_doubtful=False, edge_correlation=0.5)
    records = [Record(calibration_sha256=calibration, picture=each) for each in (good, bad)]
    found = run(tmp_path, ["good", "bad"], records=records)
    report_run(found, found.page())
    said = " ".join(capsys.readouterr().err.split())
    page = html.unescape((tmp_path / "report.html").read_text())
    for text in (said, page):
        (line,) = re.findall(r"1 of 2 doubtful \(bad.tif\): (.*\.)", text)
        assert line.startswith(seen)
        assert repair in line
        assert sum(other in line for other in ("Edges", "differs from", "although")) == 1


def test_results_of_two_models_are_said_to_be(tmp_path, capsys):
    """Each picture has its record, so both stay: the command of today translates all by one."""
    records = [Record(target_model_sha256=digest, picture=PictureFigures()) for digest in ("a", "a", "b")]
    report_run(run(tmp_path, ["a", "b", "c"], records=records))
    said = " ".join(capsys.readouterr().err.split())
    assert "the results are of 2 different models or calibrations (see the records); the same command" in said
    report_run(run(tmp_path, ["a", "b"], records=records[:2]))
    assert "different models" not in capsys.readouterr().err


def test_an_item_whose_record_cannot_be_read_is_on_the_page(tmp_path):
    found, made = run(tmp_path, []), tmp_path / "head.nii.gz"
    made.write_bytes(b"")
    items = [{"plane": 0, **Record(picture=PictureFigures()).stored()}, {"plane": 1, "format": 99}]
    report = {"kind": "NIfTI", "planes": 2, "slices": {}, "items": items}
    study = WrittenStudy(made, (made,), tmp_path / "head.json", Record(), report, ())
    found.written.append(study)
    page = found.page().read_text()
    assert "head, slice 1" in page
    row = page.partition("head, slice 2")[2].partition("</tr>")[0]
    assert "its record cannot be read" in html.unescape(row)


def event(done: int, state: JobState = JobState.RUNNING) -> Event:
    return Event(done + 1, state, item=done, stage="done", items_done=done, items=10)

"""Which delivered pictures `ddib translate` and `ddib job fetch` call doubtful, and what they say of them."""

from __future__ import annotations

import json

import pytest

from ddib_fed.cli.folder_report import report_run
from ddib_fed.client.client import JobResult, ResultFile, job_header
from ddib_fed.client.files import FileItem
from ddib_fed.client.folder_run import FolderRun, RunOptions, RunProgress
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import write_result
from ddib_fed.engine.record import Part, PictureFigures, Translation
from ddib_fed.terminal import sentences_aside

FIGURES = PictureFigures(
    height=32, width=32, size_rule="resize", low=0, high=255, cycle_mse=1e-4, cycle_psnr=40.0, edge_correlation=0.5,
    mutual_information=1.0, least_edge_correlation=0.19, least_mutual_information=0.32, structure_doubtful=False,
)  # fmt: skip


def replace(figures: PictureFigures, **changes: object) -> PictureFigures:
    return figures.model_copy(update=changes)


LOST = replace(FIGURES, edge_correlation=0.07, structure_doubtful=True)
POOR = replace(FIGURES, cycle_psnr=12.0)
OLD = replace(FIGURES, least_edge_correlation=None, least_mutual_information=None, structure_doubtful=None)


def said(figures: PictureFigures) -> Translation:
    return Translation(source_domain="satellite", target_domain="relief", picture=figures)


@pytest.mark.parametrize(
    ("figures", "doubts"),
    [
        (FIGURES, ()),
        (LOST, ("structure",)),
        (POOR, ("cycle_psnr",)),
        (replace(LOST, cycle_psnr=float("nan")), ("cycle_psnr", "structure")),
        (replace(LOST, cycle_psnr=None), ("structure",)),
        (OLD, ()),
        (replace(OLD, cycle_psnr=None), None),
    ],
)
def test_a_picture_is_doubtful_by_its_round_trip_or_by_its_structure(figures, doubts):
    """A round trip of 40 dB does not excuse lost structure; a node or model that says nothing marks nothing."""
    judged = said(figures).judged(30.0)
    assert judged.doubts == doubts
    assert judged.doubtful is (None if doubts is None else bool(doubts))


def test_the_record_and_the_terminal_say_why(tmp_path, capsys):
    """The file, the reason and the mark, without --cycle."""
    file = ResultFile(".png", b"png", b"s" * 32)
    result = JobResult(0, {Part.TRANSLATION: file}, said(replace(LOST, cycle_psnr=None)))
    delivered = write_result(result, FileItem("coast", "coast.png", "00"), tmp_path, doubtful_below=30.0)
    record = json.loads((tmp_path / "coast.json").read_text())
    assert (record["doubtful"], record["doubts"]) == (True, ["structure"])
    assert record["picture"]["least_edge_correlation"] == 0.19
    options = RunOptions(
        Profile.model_construct(), job_header("south.example/relief"), tmp_path, RunProgress()
    )
    run = FolderRun(options, total=1, results={"coast": delivered})
    report_run(run)
    shown = capsys.readouterr()
    assert "doubtful" in shown.out
    assert "1 of 1 doubtful" in shown.err
    assert "coast.png" in shown.err
    with sentences_aside():
        report_run(run)
    assert json.loads(capsys.readouterr().out)["items"][0]["record"]["doubts"] == ["structure"]

"""Which delivered pictures `ddib translate` and `ddib job fetch` call doubtful, and what they say of them."""

from __future__ import annotations

import json

import pytest

from ddib_fed.cli.delivery import Input, WriteOptions, write_result
from ddib_fed.cli.folder_report import Document, report_outcome
from ddib_fed.cli.folder_state import Outcome
from ddib_fed.client.views import Media, Result, ResultFile
from ddib_fed.engine.record import Part, PictureFigures, Translation
from tests.cli.demo.test_pictures import provenance

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
    return provenance(0.1).with_(picture=figures)


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
    """The file, the reason and the mark, without --cycle and --doubtful-below."""
    file = ResultFile(Media.PNG, b"png", b"s" * 32)
    result = Result(0, {Part.TRANSLATION: file}, said(replace(LOST, cycle_psnr=None)))
    given = Input("coast", "coast.png", "00")
    delivered = write_result(result, given, WriteOptions(tmp_path, doubtful_below=30.0))
    record = json.loads((tmp_path / "coast.json").read_text())
    assert (record["doubtful"], record["doubts"]) == (True, ["structure"])
    assert record["picture"]["least_edge_correlation"] == 0.19
    outcome = Outcome(1, (), (delivered,), 0, (), (), ())
    report_outcome(outcome, "south.example/relief", tmp_path, Document(is_wanted=False))
    shown = capsys.readouterr()
    assert "doubtful" in shown.out
    assert "1 of 1 doubtful" in shown.err
    assert "coast.png" in shown.err
    document = Document(is_wanted=True)
    report_outcome(outcome, "south.example/relief", tmp_path, document)
    assert document.values["items"][0]["doubts"] == ("structure",)

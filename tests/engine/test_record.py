"""Records of translations: written, read, and refused."""

from __future__ import annotations

import json

import pytest

from ddib_fed.engine.record import PictureFigures, Translation

RECORD = Translation(
    input_sha256="d" * 64, picture=PictureFigures(height=48, width=32, cycle_psnr=41.0)
).stored()  # fmt: skip


def test_a_record_comes_back_as_it_was_written() -> None:
    figures = PictureFigures(height=4, width=5, size_rule="crop", low=0.0, high=1.0, cycle_psnr=29.0)
    record = Translation(input="ct.tif", picture=figures, seconds={"encode": 0.5}).judged()
    assert record.doubts == ("cycle_psnr",)
    assert Translation.parse(json.loads(record.to_json())) == record


@pytest.mark.parametrize(
    "raw", [None, [], "text", {}, {"unknown": 1}, RECORD | {"format": 1}, RECORD | {"picture": 7}]
)
def test_what_is_no_record_is_none(raw) -> None:
    assert Translation.parse(raw) is None

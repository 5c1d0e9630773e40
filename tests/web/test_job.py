"""One translation on the page: one count over all its jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.engine.record import Part, Translation
from ddib_fed.errors import ItemNotFound, JobFailed
from ddib_fed.protocol.messages import Event, JobState
from ddib_fed.web.backend import PutTogether, Result, Study, TranslationRequest, measured_in_words
from ddib_fed.web.researcher import Job

SLICES = Study("Ada", "DICOM series (MR)", 4, 3, "slice", ("/private/Ada: burnt-in text",))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    made = Job(
        1, 6, TranslationRequest(target="south.example/relief"), tmp_path / "out", {"/private/Ada": "Ada"}
    )
    made.opened([SLICES], 5, 3)
    return made


def moved(done: int) -> Event:
    return Event(sequence=done + 1, state=JobState.RUNNING, item=0, stage="encode", items_done=done, items=2)


def test_the_count_goes_on_from_job_to_job(job: Job, tmp_path: Path) -> None:
    """Each job of the node begins at 0 again, and the page does not."""
    counts = []
    for name, items in (("a", 2), ("b", 1), ("c", 2)):
        job.submitted(name, tmp_path)
        for done in range(items + 1):
            job.event(moved(done), "Ada, slice 1")
            counts.append(job.progress()["done"])
        job.job_ended(name, items)
        counts.append(job.progress()["done"])
    assert counts == [0, 1, 2, 2, 2, 3, 3, 3, 4, 5, 5]
    assert job.progress()["items"] == 5
    assert job.running == []


def test_stopping_names_what_is_at_the_node(job: Job, tmp_path: Path) -> None:
    """Of three jobs one has ended."""
    for name in ("a", "b", "c"):
        job.submitted(name, tmp_path)
    job.job_ended("a", 2)
    assert job.stop() == ("b", "c")
    assert job.stopped


def test_warnings_and_errors_have_the_names_that_the_person_knows(job: Job) -> None:
    """And no path of the private folder."""
    job.left_out("Ada", "/private/Ada: 2 of 3 planes were not translated")
    job.end(JobFailed("/private/Ada cannot be put together"))
    told = job.progress()
    assert told["studies"][0]["warnings"] == ["Ada: burnt-in text"]
    assert told["missing"] == ["Ada: 2 of 3 planes were not translated"]
    assert told["error"]["detail"] == "Ada cannot be put together"


def test_a_slice_is_shown_and_its_volume_downloaded(job: Job, tmp_path: Path) -> None:
    """Files of their own are downloaded as they are; before it is put together there is no volume."""
    view, mine = tmp_path / "0001.source.png", tmp_path / "out" / "mine.png"
    job.written(Result("Ada, slice 2", {Part.SOURCE: view}, Translation(), study=0, plane=2))
    job.written(Result("mine.png", {Part.TRANSLATION: mine}, Translation(), (mine,)))
    assert job.file(0, Part.SOURCE) == view
    assert job.download(1, Part.TRANSLATION) == mine
    with pytest.raises(ItemNotFound, match="a part of a volume"):
        job.download(0, Part.SOURCE)
    for ask in (
        lambda: job.file(2, Part.SOURCE),
        lambda: job.file(-1, Part.SOURCE),
        lambda: job.together(0),
        lambda: job.together(-1),
    ):
        with pytest.raises(ItemNotFound):
            ask()
    assert job.outputs() == [mine]
    volume = tmp_path / "out" / "Ada" / "0001.dcm"
    job.put_together(
        0, PutTogether((volume,), tmp_path / "out" / "Ada.json", ("steady",), Translation()), None
    )
    assert job.together(0).outputs == (volume,)
    assert job.outputs() == [mine, volume, tmp_path / "out" / "Ada.json"]
    assert job.progress()["studies"][0]["said"] == ["steady"]
    assert (job.progress()["written"], job.result(0)["plane"]) == (2, 2)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"flicker": None, "seams": None}, ()),
        ({"flicker": {"ratio": None}}, ()),
        ({"flicker": {"ratio": 1.1}}, ("no more than the source",)),
        ({"flicker": {"ratio": 2.44}}, ("2.4 times as much",)),
        ({"seams": {"source": 1.3, "translation": 1.4}}, ("no seams",)),
        ({"seams": {"source": 1.0, "translation": 1.9}}, ("look for seams",)),
    ],
)
def test_measures_are_said_in_plain_words(report: dict, words: tuple[str, ...]) -> None:
    """A figure, and what to make of it."""
    said = measured_in_words(report)
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))

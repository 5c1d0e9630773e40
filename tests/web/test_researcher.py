"""`ddib web` from a dropped file to a downloaded result, against a real server over mutual TLS."""

import io
import json
import re
import zipfile

import numpy as np
import pytest

from ddib_fed.errors import DdibError, ExtraMissing, PeerUnreachable, QueueFull, all_errors, step_in_words
from tests.client.scripted_source import TARGET, npy, points


def drop(browser, *names: str) -> None:
    for number, name in enumerate(names):
        answer = browser.post("/files", params={"name": name}, content=npy(points(100, start=number)))
        assert answer.status_code == 200, answer.text


def test_domains_are_those_of_the_node(browser) -> None:
    """The one that is away is there, with its reason, and cannot be chosen."""
    ready, away = browser.get("/domains").json()["targets"]
    assert (ready["target"], ready["ready"]) == (TARGET, True)
    assert (away["institution"], away["ready"]) == ("west.example", False)
    assert away["why"] == PeerUnreachable.sentence


def test_what_to_try_is_said_for_somebody_at_the_page() -> None:
    """Whatever a node refuses with: in words, without a command, an option or a setting."""
    for kind in (kind for kind in all_errors() if kind is not DdibError):
        hint = step_in_words(kind(hint="pip install x"))
        assert hint
        assert kind is ExtraMissing or not re.search(r"\bddib\b|--\w|`|\bnode\.toml\b", hint), hint


def test_translates_what_was_dropped(browser, finished, north, tmp_path) -> None:
    """Two files of one name in two folders: both results, their records, progress, and acknowledged at the node."""
    drop(browser, "a/scan.npy", "b/scan.npy")
    told = finished(target=TARGET)
    last = told[-1]
    assert last[0] == "end"
    assert (last[1]["written"], last[1]["error"]) == (2, None)
    results = [value for name, value in told if name == "result"]
    assert {each["label"] for each in results} == {"a/scan.npy", "b/scan.npy"}
    assert all(["round trip, median", "0.0001"] in each["figures"] for each in results)
    (folder,) = (tmp_path / "out").iterdir()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {
        f"{name}/scan{end}" for name in "ab" for end in (".npy", ".json", ".returned.npy")
    }
    np.testing.assert_array_equal(np.load(folder / "b" / "scan.npy"), points(100, start=1) * 2)
    assert json.loads((folder / "b" / "scan.json").read_text())["input"] == "b/scan.npy"
    (job,) = north.service.jobs.values()
    assert job.delivered == {0, 1}


def test_no_name_of_a_file_or_folder_leaves(browser, finished, north) -> None:
    """Neither in the header nor beside an item."""
    drop(browser, "Ward-7/Secretname.npy")
    finished(target=TARGET)
    (sent,) = north.script.seen("SubmitJob")
    assert b"ecretname" not in sent.SerializeToString()
    assert b"Ward" not in sent.SerializeToString()


def test_results_are_downloaded_one_by_one_or_together(browser, finished, tmp_path) -> None:
    """The same bytes as in the folder; latents are not there for the browser."""
    drop(browser, "scan.npy")
    finished(target=TARGET)
    (folder,) = (tmp_path / "out").iterdir()
    one = browser.get("/jobs/1/0/translation/file")
    assert one.content == (folder / "scan.npy").read_bytes()
    assert "attachment" in one.headers["content-disposition"]
    every = zipfile.ZipFile(io.BytesIO(browser.get("/jobs/1/all.zip").content))
    assert every.testzip() is None
    assert {name: every.read(name) for name in every.namelist()} == {
        f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()
    }
    for part in ("source", "translation", "returned"):
        assert browser.get(f"/jobs/1/0/{part}/view").headers["content-type"] == "image/png"
    assert browser.get("/jobs/1/0/latent/file").status_code == 404
    assert browser.get("/jobs/1/7/translation/file").status_code == 404


def test_a_job_that_is_refused_gives_the_files_back(browser, finished, north) -> None:
    """Nothing has to be dropped again, and nothing lies in the folder of results."""
    north.script.refuse["SubmitJob"] = QueueFull()
    drop(browser, "scan.npy")
    (*_, (name, value)) = finished(target="south.example/nothing/else")
    assert name == "end"
    assert value["error"]["reason"] == "USAGE"
    assert "choose otherwise" in value["error"]["hint"]
    assert [each["label"] for each in browser.get("/files").json()] == ["scan.npy"]
    assert not value["job_id"]


def test_an_item_that_fails_does_not_take_the_others_with_it(browser, finished, north, tmp_path) -> None:
    """What was translated is on the disk; the end says what failed."""
    north.script.fail_items = {0}
    drop(browser, "a.npy", "b.npy")
    (*_, (_, value)) = finished(target=TARGET)
    assert value["written"] == 1
    assert value["error"]["reason"] == "FILES_LEFT_OUT"
    assert "leave it out" in value["error"]["hint"]
    assert value["missing"] == ["a.npy: not noise [LATENT_NOT_GAUSSIAN]"]
    assert "drop a picture like those that your node's model was trained on" in value["error"]["hint"]
    (folder,) = (tmp_path / "out").iterdir()
    assert (folder / "b.npy").exists()


@pytest.mark.parametrize(
    "body",
    [
        '{"target": "a/b", "slices": "oblique"}',
        "[]",
        '{"target": "a/b", "intensity": "bright"}',
        '{"target": "a/b", "x": 1}',
        "{" * 2_000_000,
    ],
)
def test_a_request_that_cannot_be_used_is_refused(browser, body: str) -> None:
    drop(browser, "scan.npy")
    answer = browser.post("/jobs", content=body)
    assert answer.status_code == 400
    assert answer.json()["reason"] == "USAGE"
    assert len(browser.get("/files").json()) == 1


def test_a_name_is_text_and_never_markup(browser, finished) -> None:
    """Nor does a character that turns text around reach the page."""
    drop(browser, "<img src=x onerror=alert(1)>\u202e.npy")
    finished(target=TARGET)
    shown = browser.get("/").text + browser.get("/jobs/1").text
    assert "<img src=x" not in shown
    assert "\u202e" not in json.dumps(browser.get("/jobs/1/events").text, ensure_ascii=False)

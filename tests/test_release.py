"""What a release says of itself: NOTICE names everything that ships, and the change log its versions."""

import re
from pathlib import Path

import ddib_fed
from ddib_fed import Model
from ddib_fed.datasets import SHIPPED
from ddib_fed.models.catalogue import shipped_folder, shipped_names

ROOT = Path(__file__).parents[1]
NOTICE = (ROOT / "NOTICE").read_text()
CODE = {".css", ".html", ".js", ".proto", ".py", ".pyc", ".pyi", ".typed"}
PLACES = ("ddib_fed", "source_node", "target_node", "docs/images", "tests/data")


def test_notice_names_every_model_that_ships() -> None:
    """Each is under the source of its pictures; a model without an entry may not ship, nor an entry without one."""
    entries = re.findall(r"^Models: ([^;.]*)", NOTICE, re.MULTILINE)
    assert {name for entry in entries for name in re.split(r",\s+", entry)} == set(shipped_names())


def test_every_model_states_the_terms_of_its_pictures() -> None:
    """In its manifest, as a client sees it: those that `ddib model train --domain` writes today."""
    terms = {domain.note: domain.licence for domain in SHIPPED.values()}
    notes = [note for name in shipped_names() if (note := Model.open(name).manifest.data) is not None]
    assert [note.licence for note in notes] == [terms[note.note] for note in notes]
    assert len(notes) == 12


def test_notice_names_every_data_file_that_ships() -> None:
    """By its path, or by a folder that it lies in: what is in the wheels and no code, and what the pages show."""
    files = [path for place in PLACES for path in (ROOT / place).rglob("*") if path.is_file()]
    data = [path for path in files if path.suffix not in CODE and shipped_folder() not in path.parents]
    entries = set(re.findall(r"[\w./-]+\w", NOTICE)) - {"docs/images"}
    paths = [path.relative_to(ROOT) for path in data]
    unnamed = [path for path in paths if entries.isdisjoint(map(str, (path, *path.parents)))]
    assert len(paths) > 10
    assert not unnamed


def test_the_change_log_has_this_version() -> None:
    versions = re.findall(r"^## ([\w.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert ddib_fed.__version__ in versions

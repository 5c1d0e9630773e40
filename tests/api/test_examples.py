"""The examples in the docstrings of the face run; every name of it is in the reference, whose links lead somewhere."""

import doctest
import inspect
from pathlib import Path

import pytest

import ddib_fed
import ddib_fed.studies
from tests.api.reference import Page, faults, write


def examples():
    """Doctests of the face's names; those of a class are of its methods too, and of what readers of formats need."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in ddib_fed.__all__:
        thing = getattr(ddib_fed, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            tests = finder.find(thing, name, module=inspect.getmodule(thing), globs={})
            yield from (test for test in tests if test.examples)
    yield from (test for test in finder.find(ddib_fed.studies, "ddib_fed.studies") if test.examples)


@pytest.mark.slow
@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_an_example_does_what_it_shows(example) -> None:
    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=print)
    assert found.failed == 0


def test_every_name_of_the_face_is_documented() -> None:
    assert [name for name in ddib_fed.__all__ if not inspect.getdoc(getattr(ddib_fed, name))] == []


@pytest.mark.slow
def test_the_reference_is_whole(tmp_path: Path) -> None:
    write(tmp_path)
    page = Page((tmp_path / "ddib_fed.html").read_text())
    assert set(ddib_fed.__all__) <= page.anchors
    assert "Client.from_profile" in page.anchors
    assert faults(tmp_path) == []

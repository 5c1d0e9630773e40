"""The examples in the docstrings of the face run, and every name of it is there."""

import doctest
import inspect

import pytest

import ddib_fed
import ddib_fed.studies


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

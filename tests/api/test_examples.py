"""The examples of the face run as they stand."""

from __future__ import annotations

import doctest

import pytest

import ddib_fed


@pytest.mark.slow
@pytest.mark.parametrize("name", ddib_fed.__all__)
def test_an_example_gives_what_it_shows(name: str) -> None:
    found = doctest.DocTestFinder(recurse=False).find(getattr(ddib_fed, name), name, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for each in found:
        runner.run(each)
    assert runner.summarize(verbose=False).failed == 0

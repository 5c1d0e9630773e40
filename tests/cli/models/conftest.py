"""Commands that are run where the tests are."""

from __future__ import annotations

import pytest
from click.testing import CliRunner


@pytest.fixture
def ddib():
    """Run a command; errors of ours come out as they are."""

    def call(command, *arguments):
        words = [str(each) for each in arguments]
        return CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)

    return call

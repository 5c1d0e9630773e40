"""Runs commands of models in this process."""

import pytest
from click.testing import CliRunner


@pytest.fixture
def ddib():
    """Run a command of a group; errors of ours come out as they are."""

    def call(group, *arguments):
        words = [str(each) for each in arguments]
        return CliRunner().invoke(group, words, catch_exceptions=False, standalone_mode=False)

    return call

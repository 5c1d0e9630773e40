"""One buffer for what was announced."""

import pytest

from ddib_fed.wire.landing import Landing


@pytest.mark.parametrize("size", [0, 1, 1_000, 5 << 20])
def test_what_is_written_is_there_and_cannot_be_changed(size):
    """In small pages and in huge ones."""
    landing, piece = Landing(size), bytes(range(250))
    written = b""
    while len(written) < min(size, 5_000):
        landing.write(memoryview(piece)[: size - len(written)])
        written += piece[: size - len(written)]
    assert landing.whole() == written
    assert landing.whole().readonly


def test_more_than_announced_is_refused():
    """The joiner has refused it before."""
    landing = Landing(3)
    landing.write(b"abc")
    with pytest.raises(ValueError, match="assignment"):
        landing.write(b"d")

"""All that is random in a private run follows from a key that only its folder holds."""

import numpy as np
import pytest

from ddib_fed.errors import StateConflict
from ddib_fed.lab.private import KEY_FILE, RunKey, forget_key, key_of_run

KEY = RunKey(bytes(32))


def test_each_sample_takes_part_with_the_rate_and_on_its_own():
    """The size of a Poisson sample varies as that of independent coins."""
    sizes = [len(KEY.chosen(step, 1_000, 0.1)) for step in range(400)]
    assert np.mean(sizes) == pytest.approx(100, abs=2)
    assert np.std(sizes) == pytest.approx(np.sqrt(90), rel=0.15)
    assert len(KEY.chosen(0, 10, 1.0)) == 10


def test_a_key_is_made_once_kept_private_and_removed(tmp_path):
    made = key_of_run(tmp_path, begun=False)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert key_of_run(tmp_path, begun=True) == made
    assert made.secret.hex() not in repr(made)
    forget_key(tmp_path)
    forget_key(tmp_path)
    assert not (tmp_path / KEY_FILE).exists()


@pytest.mark.parametrize("there", [None, b"short"])
def test_a_run_that_has_begun_needs_its_key(tmp_path, there):
    """Other noise on the same steps would spend twice."""
    if there is not None:
        (tmp_path / KEY_FILE).write_bytes(there)
    with pytest.raises(StateConflict, match=KEY_FILE.replace(".", r"\.")):
        key_of_run(tmp_path, begun=True)

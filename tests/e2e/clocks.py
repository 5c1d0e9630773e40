"""A clock that is wrong for the job store of one process, for `tests.e2e.processes.PLANT`."""

import os
import sys
import time

PLANTED = "tests.e2e.clocks:plant"
AHEAD = "DDIB_TESTS_CLOCK_AHEAD_S"
"""Names by how many seconds the clock is ahead."""


def plant() -> None:
    """Set the clock; certificates, gRPC and steady clocks go on."""
    real, ahead = time.time, float(os.environ[AHEAD])

    def wrong() -> float:
        caller = sys._getframe(1).f_globals["__name__"].partition(".")[0]
        return real() + (ahead if caller == "source_node" else 0.0)

    time.time = wrong

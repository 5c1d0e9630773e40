"""Detects whether this process is one of several started together (torchrun, MPI, Slurm), from the environment.

What does not share its work among processes refuses several of them before it writes anything. Otherwise
each would do all of it, and all would write the same files.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import Final

from ddib_fed.errors import UsageError

TORCHRUN = "WORLD_SIZE"
STARTERS = {
    TORCHRUN: "torchrun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpirun_rsh",
    "SLURM_STEP_NUM_TASKS": "srun",
}
"""Where each starter says how many processes there are; torchrun's word counts where there are several.

An allocation of Slurm may have more tasks than the step that this process belongs to: the step's count is meant.
"""
PR_SET_PDEATHSIG: Final = 1


def started_together() -> tuple[int, str]:
    """How many processes were started together, and by what; 1 and nothing for one alone."""
    for variable, starter in STARTERS.items():
        text = os.environ.get(variable, "")
        if text.isdecimal():
            return (int(text), starter) if int(text) > 1 else (1, "")
    return 1, ""


def processes_here() -> int:
    """How many of them run on this machine."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(text)) if text.isdecimal() else started_together()[0]


def end_with_parent() -> None:
    """On Linux, have the kernel kill this process as soon as its parent has ended; elsewhere nothing happens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def require_alone(what: str) -> None:
    """Return in a process that is alone."""
    count, starter = started_together()
    if count > 1:
        raise UsageError(
            f"{what} runs in one process, and {starter} started {count}",
            hint=f"the same command without {starter}; `ddib model train` shares its work among processes",
        )


def require_torchrun(what: str) -> None:
    """Return in a process that is alone, or one of several that torchrun started and that know of each other."""
    count, starter = started_together()
    if count > 1 and starter != STARTERS[TORCHRUN]:
        raise UsageError(
            f"{what} shares its work among processes of torchrun alone, and {starter} started {count}",
            hint=f"torchrun --nproc-per-node {count} --no-python ddib model train ... --out DIR",
        )

"""Work for spawned processes, in a module that imports no torch, so that they start fast."""

from __future__ import annotations

import os

from ddib_fed.errors import SettingsInvalid


def doubler(device, *, fault=None):
    """Makes a worker that doubles, or does what it should not."""

    def work(piece, on_tick):
        on_tick(piece)
        if piece == fault:
            raise SettingsInvalid("no such piece", hint="leave it out")
        if fault == "killed":
            os._exit(9)
        return 2 * piece, os.getpid(), device

    if fault == "start":
        raise SettingsInvalid("no such model", hint="train it")
    return work

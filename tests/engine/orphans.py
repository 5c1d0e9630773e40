"""Processes that this one started."""

from __future__ import annotations

import os
import subprocess


def children() -> list[int]:
    with subprocess.Popen(["pgrep", "-P", str(os.getpid())], stdout=subprocess.PIPE, text=True) as search:
        found = [int(line) for line in search.communicate()[0].split()]
    return [process for process in found if process != search.pid]

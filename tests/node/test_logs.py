"""What of a process reaches its log, tried in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

SETUP = """
import logging, sys, threading, warnings
from ddib_fed.node.command import route, silence_grpc
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
route(handler, "{level}")
"""


def said(code: str, *, level: str = "debug", **environment: str) -> tuple[str, str]:
    """What a process with this code writes to stdout, which is its log, and to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", SETUP.format(level=level) + code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return done.stdout, done.stderr


def test_warnings_and_exceptions_that_nobody_caught_are_in_the_log() -> None:
    """Of the main thread and of another; nothing is written past the log."""
    log, past = said(
        "warnings.warn('careful')\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='t'); thread.start(); thread.join()\n"
        "raise KeyError('last')\n",
        PYTHONWARNINGS="default",
    )
    assert past == ""
    assert "WARNING py.warnings" in log
    assert "ERROR ddib_fed.node.command thread t ended" in log
    assert "CRITICAL ddib_fed.node.command" in log


def test_grpc_says_nothing_whatever_the_environment_asks_for() -> None:
    code = "silence_grpc()\nimport grpc\ngrpc.insecure_channel('127.0.0.1:1').close()\n"
    assert said(code, GRPC_TRACE="all", GRPC_VERBOSITY="debug") == ("", "")

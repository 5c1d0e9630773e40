"""Starts nodes as processes of their own, forked from a server that has imported a node's modules."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
PLANT = "DDIB_TESTS_PLANT"
"""Names a function, "module:name", that a node's process calls before anything else: leaks and failpoints of tests."""
IMPORTED = ("source_node.service", "target_node.service", "ddib_fed.node.daemon", "pytest")


class NodeProcess:
    """A node's process, with the part of `subprocess.Popen` that the tests need."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def poll(self) -> int | None:
        return None if self._process.is_alive() else self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit code."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"node {self._process.pid}", timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_node(
    role: str, words: Sequence[str], log: Path, *, environment: Mapping[str, str], open_files: int | None
) -> NodeProcess | subprocess.Popen[bytes]:
    """`python -m {role}_node serve WORDS`, its output appended to `log`."""
    if "PYTHONPATH" in environment:
        command = [sys.executable, "-P", "-m", _module(role), "serve", *words]
        with log.open("ab") as output:
            whole = {**os.environ, **ENVIRONMENT, **environment}
            return subprocess.Popen(command, stdout=output, stderr=output, env=whole)
    log.touch()
    process = _context().Process(
        target=_serve, args=(role, tuple(words), str(log), dict(environment), open_files), daemon=True
    )
    process.start()
    return NodeProcess(process)


def _context() -> ForkServerContext:
    """The server, started with the environment that nodes get."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def _module(role: str) -> str:
    return "ddib_fed.node" if role == "both" else f"{role}_node"


def _serve(
    role: str, words: Sequence[str], log: str, environment: dict[str, str], open_files: int | None
) -> None:
    os.environ.update(environment)
    # A node is a daemon of the tests alone: as one it could have no workers.
    multiprocessing.process.current_process()._config["daemon"] = False
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if open_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    sys.argv = [_module(role), "serve", *words]
    if planted := environment.get(PLANT):
        module, _, name = planted.partition(":")
        getattr(importlib.import_module(module), name)()
    runpy.run_module(_module(role), run_name="__main__", alter_sys=True)

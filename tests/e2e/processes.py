"""Launches nodes for `ddib_fed.testing`, forked from a server that has imported a node's modules."""

import importlib
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess

from ddib_fed.engine import batcher
from ddib_fed.testing import NodeProcess

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
PLANT = "DDIB_TESTS_PLANT"
"""Names a function, "module:name", that a node's process calls before anything else: leaks and failpoints of tests."""
IMPORTED = ("source_node.service", "target_node.service", "ddib_fed.node.daemon", "pytest")


class ForkedProcess(ForkServerProcess):
    """A forked node's process, with what `subprocess.Popen` has beyond it."""

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired(f"node {self.pid}", timeout or 0)
        return self.exitcode


def fork_node(node: NodeProcess, words: Sequence[str], *, open_files: int | None = None) -> ForkedProcess:
    """Launch a node that may have so many open files."""
    _start_server()
    node.log.touch()
    command = [f"{node.role}_node", *words]
    process = ForkedProcess(
        target=_serve, args=(command, str(node.log), dict(node.environment), open_files), daemon=True
    )
    process.start()
    return process


def _start_server() -> None:
    """Start the server, once, with the environment that nodes get."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(command: list[str], log: str, environment: Mapping[str, str], open_files: int | None) -> None:
    os.environ.update(environment)
    # A node is a daemon of the tests alone: as one it could have no workers.
    multiprocessing.process.current_process()._config["daemon"] = False
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if open_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    if (
        "PYTEST_VERSION" in os.environ
    ):  # a matter of speed, which benchmarks need and tests/engine/test_batcher.py tests
        batcher.REPEATS, batcher.measured.__kwdefaults__["limit_s"] = 1, 0.1  # type: ignore[misc,index]
    sys.argv = command
    if planted := environment.get(PLANT):
        module, _, name = planted.partition(":")
        getattr(importlib.import_module(module), name)()
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)

"""Points of a node at which a test kills it with -9: one before and after everything that is made durable or
crosses.
"""

import functools
import importlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILE = "DDIB_TESTS_FAILPOINT"
"""Names the file that holds the point at which the process is to die; none while it is not there."""

PLANTED = "tests.chaos.failpoints:plant"


def load(path: str) -> Any:
    """A class or module of a node by its dotted name, imported in the node alone."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


STAGING = "source_node.submission.Staging"
DISK = "ddib_fed.store"
NODE = "ddib_fed.store.NodeStore"
SPOOL = "source_node.spool.Spool"
STORE = "source_node.store.JobStore"
REMOTE = "source_node.remote.Remote"
PARTY = "source_node.remote.RemoteParty"
PIPELINE = "source_node.pipeline.JobPipeline"
EVENTS = "source_node.pipeline.StepEvents"
RUNNER = "source_node.runner.JobRunner"
SERVICE = "source_node.service.TranslationServicer"
LATENT = "ddib_fed.protocol.latent.ApprovedLatent"
AGREED = "target_node.service.AgreedContracts"
TARGET = "target_node.service.DecodingServicer"

# name: (owner, method, when)
SOURCE_POINTS: dict[str, tuple[str, str, str]] = {
    "submission begins": (STAGING, "__init__", "after"),
    "item received": (STAGING, "keep", "after"),
    "staged files not synced": (SPOOL, "sync", "before"),
    "staged files synced, no row": (SPOOL, "sync", "after"),
    "job accepted, not answered": (STAGING, "commit", "after"),
    "job claimed": (STORE, "claim", "found"),
    "contract agreed": (REMOTE, "negotiate", "after"),
    "latent made, not stored": (PIPELINE, "_release", "before"),
    "transaction not begun": (NODE, "_commit", "before"),
    "first file of a transaction written, not synced": (SPOOL, "put", "after"),
    "files of a transaction synced, no rows": (DISK, "sync_files", "after"),
    "rows of a transaction there, nobody knows": (NODE, "_commit", "after"),
    "latent stored and recorded as sent": (PIPELINE, "_release", "after"),
    "latent sent": (LATENT, "stream", "end"),
    "answer received": (PARTY, "_outcome", "after"),
    "result made, not stored": (PIPELINE, "_result", "after"),
    "result stored": (EVENTS, "ends", "before"),
    "files of a finished step not yet removed": (SPOOL, "remove", "before"),
    "job about to end": (STORE, "finish", "before"),
    "job ended": (STORE, "finish", "after"),
    "end of the job told": (RUNNER, "announce", "after"),
    "results written down, not sent": (STORE, "sending", "after"),
    "result fetched": (SERVICE, "_result", "end"),
    "items about to be delivered": (STORE, "acknowledge", "before"),
    "items delivered, not answered": (STORE, "acknowledge", "after"),
    "job deleted, files there": (SPOOL, "remove_job", "before"),
    "job deleted, not answered": (STORE, "delete", "after"),
}
TARGET_POINTS: dict[str, tuple[str, str, str]] = {
    "target: contract kept": (AGREED, "remember", "after"),
    "target: call begins": (TARGET, "_on_items", "after"),
    "target: result not yet sent": (TARGET, "_messages", "begin"),
    "target: result sent": (TARGET, "_messages", "end"),
}


def plant() -> None:
    file = Path(os.environ[FILE])
    for name, (owner, method, when) in (SOURCE_POINTS | TARGET_POINTS).items():
        _wrap(load(owner), method, when, functools.partial(_pass, file, name))


def _pass(file: Path, name: str) -> None:
    """Die here if a test wants it."""
    try:
        wanted = file.read_text()
    except FileNotFoundError:
        return
    if wanted == name:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # the signal is on its way


def _wrap(owner: Any, method: str, when: str, passed: Callable[[], None]) -> None:
    inner = getattr(owner, method)

    @functools.wraps(inner)
    def one(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            passed()
        answer = inner(*arguments, **named)
        if when == "after" or (when == "found" and answer is not None):
            passed()
        return answer

    @functools.wraps(inner)
    def many(*arguments: Any, **named: Any) -> Iterator[Any]:
        if when == "begin":
            passed()
        yield from inner(*arguments, **named)
        if when == "end":
            passed()

    setattr(owner, method, many if when in {"begin", "end"} else one)

"""Points of a node at which a test kills it with -9: one before and after everything that is made durable or
crosses.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILE = "DDIB_TESTS_FAILPOINT"
"""Names the file that holds the point at which the process is to die; none while it is not there."""

PLANTED = "tests.chaos.failpoints:plant"
Owner = Callable[[], type]


def _source(path: str) -> Owner:
    """A class or module of the source node by its dotted name, imported in the node alone."""

    def load() -> type:
        import importlib

        module, _, name = path.rpartition(".")
        found: type = getattr(importlib.import_module(module), name)
        return found

    return load


STAGING = _source("source_node.submission.Staging")
DISK = _source("ddib_fed.store")
NODE = _source("ddib_fed.store.NodeStore")
SPOOL = _source("source_node.spool.Spool")
STORE = _source("source_node.store.JobStore")
REMOTE = _source("source_node.remote.Remote")
PARTY = _source("source_node.remote.RemoteParty")
PIPELINE = _source("source_node.pipeline.JobPipeline")
EVENTS = _source("source_node.events.StepEvents")
RUNNER = _source("source_node.runner.JobRunner")
SERVICE = _source("source_node.service.TranslationServicer")
LATENT = _source("ddib_fed.protocol.latent.ApprovedLatent")
AGREED = _source("target_node.service.AgreedContracts")
TARGET = _source("target_node.service.DecodingServicer")

# name: (owner, method, when)
SOURCE_POINTS: dict[str, tuple[Owner, str, str]] = {
    "submission begins": (STAGING, "__init__", "after"),
    "item received": (STAGING, "keep", "after"),
    "staged files not synced": (SPOOL, "sync", "before"),
    "staged files synced, no row": (SPOOL, "sync", "after"),
    "job accepted, not answered": (STAGING, "commit", "after"),
    "job claimed": (STORE, "claim", "found"),
    "contract agreed": (REMOTE, "negotiate", "after"),
    "latent made, not stored": (PIPELINE, "_keep_latent", "before"),
    "transaction not begun": (NODE, "_commit", "before"),
    "first file of a transaction written, not synced": (SPOOL, "put", "after"),
    "files of a transaction synced, no rows": (DISK, "sync_files", "after"),
    "rows of a transaction there, nobody knows": (NODE, "_commit", "after"),
    "latent stored": (PIPELINE, "_is_stored", "after"),
    "latent recorded as sent": (PIPELINE, "_release", "after"),
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
TARGET_POINTS: dict[str, tuple[Owner, str, str]] = {
    "target: contract kept": (AGREED, "remember", "after"),
    "target: call begins": (TARGET, "_on_items", "after"),
    "target: result not yet sent": (TARGET, "_messages", "begin"),
    "target: result sent": (TARGET, "_messages", "end"),
}


def plant() -> None:
    file = Path(os.environ[FILE])
    for name, (owner, method, when) in (SOURCE_POINTS | TARGET_POINTS).items():
        _wrap(owner(), method, when, functools.partial(_pass, file, name))


def _pass(file: Path, name: str) -> None:
    """Die here if a test wants it."""
    try:
        wanted = file.read_text()
    except FileNotFoundError:
        return
    if wanted == name:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # the signal is on its way


def _wrap(owner: type, method: str, when: str, passed: Callable[[], None]) -> None:
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

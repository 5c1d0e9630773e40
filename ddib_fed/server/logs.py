"""Configures logging of a node's process: one handler, other libraries quiet.

Only our own loggers follow the configured level. Other libraries log from WARNING up, those that read
pictures not at all (Pillow writes the metadata of a picture at debug), and gRPC's C core, which bypasses Python's
logging and writes to stderr, is off.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import TracebackType
from typing import Final

OWN: Final = ("ddib_fed", "source_node", "target_node")
# Their errors are also raised as exceptions, without the picture's metadata.
READERS: Final = ("PIL", "tifffile")

log = logging.getLogger(__name__)


def silence_grpc() -> None:
    """Turn off the C core's own log and its traces, which hold messages; before the first import of grpc."""
    os.environ["GRPC_VERBOSITY"] = "NONE"
    for name in ("GRPC_TRACE", "GRPC_STACKTRACE_MINLOGLEVEL"):
        os.environ.pop(name, None)


def route(handler: logging.Handler, level: str) -> None:
    """Send logs, warnings and uncaught exceptions to one handler."""
    own = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(own, logging.WARNING), handlers=[handler], force=True)
    for name in OWN:
        logging.getLogger(name).setLevel(own)
    for name in READERS:
        reader = logging.getLogger(name)
        reader.propagate = False
        reader.addHandler(logging.NullHandler())
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the process ends by an exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None and not issubclass(hook.exc_type, SystemExit):
        name = hook.thread.name if hook.thread is not None else "?"
        trace = (hook.exc_type, hook.exc_value, hook.exc_traceback)
        log.error("thread %s ended by an exception", name, exc_info=trace)

"""The log of a node, as text or JSON lines, with warnings, uncaught exceptions and silence of gRPC's C core.

A thread that must outlive its failures (`Repeated`) writes them here.

Imports no grpc: its own log has to be turned off before.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from ddib_fed.terminal import escape

log = logging.getLogger(__name__)

OWN: Final = ("ddib_fed", "source_node", "target_node")
# Their errors are also raised as exceptions, without the picture's metadata.
READERS: Final = ("PIL", "tifffile")


def silence_grpc() -> None:
    """Turn off the C core's own log and its traces, which hold messages; before the first import of grpc."""
    os.environ["GRPC_VERBOSITY"] = "NONE"
    for name in ("GRPC_TRACE", "GRPC_STACKTRACE_MINLOGLEVEL"):
        os.environ.pop(name, None)


def set_up_logging(level: str, output_format: str) -> None:
    """Log to stderr, as "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if output_format == "json" else TextFormatter())
    route(handler, level)


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


class Repeated:
    """Calls a function on a thread of its own until it is stopped; what the function raises is logged."""

    def __init__(self, name: str, act: Callable[[], object], pause_s: Callable[[], float]) -> None:
        self._act, self._pause_s = act, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it when it was started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._act()
            except Exception:  # the thread must outlive any failure
                log.exception("%s failed, and is tried again", self._thread.name)
            self._stop.wait(self._pause_s())


def fields(**values: str | float) -> dict[str, dict[str, str | float]]:
    """The `extra` of a record: values that a JSON line has beside the message, by name."""
    return {"fields": values}


class TextFormatter(logging.Formatter):
    """A line for people, and below it the traceback, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return escape(super().formatMessage(record))

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802 - logging's name
        return "\n".join(f"    {escape(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object per line, for log collectors; exact, because JSON escapes control characters itself."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            **getattr(record, "fields", {}),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)

"""Formats log records as text or JSON, one escaped line each.

A record is one line, and a traceback after it is indented: no text of a peer can start a line.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Final

from ddib_fed.terminal import escape

FIELDS: Final = "fields"
"""Attribute of a record: values that a JSON line has beside the message, by name."""


def fields(**values: str | float) -> dict[str, dict[str, str | float]]:
    return {FIELDS: values}


class TextFormatter(logging.Formatter):
    """A line for people, and below it the traceback, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return escape(super().formatMessage(record))

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802 - logging's name
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's name
        return _indented(super().formatStack(stack_info))


class JsonFormatter(logging.Formatter):
    """One JSON object per line, for log collectors; exact, because JSON escapes control characters itself."""

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in getattr(record, FIELDS, {}).items():
            entry.setdefault(name, value)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _indented(text: str) -> str:
    return "\n".join(f"    {escape(line)}" for line in text.split("\n"))

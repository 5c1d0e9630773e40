"""Maps unexpected exceptions to a message and an exit code at the edge of a process.

A command never shows a traceback unless DDIB_DEBUG is set.
"""

from __future__ import annotations

import os
import shlex
import traceback

from ddib_fed.errors import ConfigError, DdibError, DiskFull, ExtraMissing, InputError, InternalError
from ddib_fed.files import is_disk_full
from ddib_fed.terminal import say

NODE_EXTRA = frozenset(
    {"torch", "safetensors", "matplotlib", "PIL", "prometheus_client", "grpc_health", "spake2"}
)


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get("DDIB_DEBUG", "") not in {"", "0"}


def missing_extra(error: Exception) -> str | None:
    """Which package of the [node] extra an ImportError is about, if any."""
    if not isinstance(error, ImportError) or error.name is None:
        return None
    package = error.name.partition(".")[0]
    return package if package in NODE_EXTRA else None


def explained(error: Exception) -> DdibError:
    """The error itself when it is one of ours, else one that says the same; shows the traceback where one is wanted."""
    if debugging():
        say(*"".join(traceback.format_exception(error)).rstrip("\n").split("\n"), err=True)
    if isinstance(error, DdibError):
        return error
    if missing := missing_extra(error):
        return ExtraMissing(
            f"this command needs {missing}, which is not installed", hint="pip install 'ddib-fed[node]'"
        )
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        kind = DiskFull if is_disk_full(error) else InputError
        return kind(f"{where}{error.strerror}", hint=_look(error))
    hint = "" if debugging() else "the same command with DDIB_DEBUG=1 in front shows where it happened"
    return InternalError(f"unexpected {type(error).__name__}: {error}", hint=hint)


def _look(error: OSError) -> str:
    """What shows why the operating system refused."""
    if error.filename is None:
        return "the same command with DDIB_DEBUG=1 in front shows where it happened"
    place = shlex.quote(str(error.filename))
    if is_disk_full(error):
        return f"df -h {place}"
    return f"namei -l {place} shows each folder of the path and who may write there"


def as_config_error(error: OSError, what: str) -> ConfigError:
    """An error of the operating system about one of a node's files or ports."""
    return ConfigError(f"{error.filename or what}: {error.strerror or error}", hint=_look(error))

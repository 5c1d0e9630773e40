"""Maps unexpected exceptions to a message and an exit code at the edge of a process.

A command never shows a traceback unless DDIB_DEBUG is set.
"""

from __future__ import annotations

import os
import shlex
import traceback

from ddib_fed.errors import ConfigError, DdibError, DiskFull, InputError, InternalError
from ddib_fed.files import is_disk_full
from ddib_fed.terminal import say

NODE_EXTRA = {
    "grpc_health": "grpcio-health-checking",
    "matplotlib": "matplotlib",
    "prometheus_client": "prometheus-client",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "spake2": "spake2",
    "torch": "torch",
}
"""What the extra `node` installs, by the name under which it is imported."""


def debugging() -> bool:
    return os.environ.get("DDIB_DEBUG", "") not in {"", "0"}


def explained(error: Exception) -> DdibError:
    """The error itself when it is one of ours, else one that says the same; shows the traceback where one is wanted."""
    if debugging():
        say(*"".join(traceback.format_exception(error)).rstrip("\n").split("\n"), err=True)
    if isinstance(error, DdibError):
        return error
    if isinstance(error, ImportError) and (package := NODE_EXTRA.get((error.name or "").partition(".")[0])):
        from ddib_fed.extras import missing

        return missing("node", package, f"this command needs {package}, which is not installed")
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
    return ConfigError(f"{error.filename or what}: {error.strerror or error}", hint=_look(error))

"""Finds the data files of installed packages.

The package is not imported; only its files are read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ddib_fed.extras import missing


def package_folder(
    package: str, module: str, *, needed_by: str = "data", what: str = "these pictures come inside"
) -> Path:
    """The folder of an installed package."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise missing(needed_by, package, f"{what} {package}, which is not installed")
    return Path(next(iter(spec.submodule_search_locations)))

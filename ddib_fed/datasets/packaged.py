"""Finds the data files of installed packages.

The package is not imported, its files are read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ddib_fed.errors import ExtraMissing


def package_folder(package: str, module: str) -> Path:
    """Where an installed package lies.

    Args:
        package: Its name on the Python package index.
        module: What it is imported as.

    Raises:
        ExtraMissing: It is not installed.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ExtraMissing(
            f"these pictures come inside {package}, which is not installed",
            hint="pip install 'ddib-fed[data]'",
            facts={"extra": "data", "package": package},
        )
    return Path(next(iter(spec.submodule_search_locations)))

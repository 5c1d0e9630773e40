"""What building a network imports."""

import subprocess
import sys

import pytest

CODE = """
import sys
from importlib import resources
from ddib_fed.models.bundle import load_bundle

for name in ("moons", "satellite"):
    load_bundle(resources.files("ddib_fed.models") / "pretrained" / name).denoiser()
print({"torch._dynamo", "diffusers"} & sys.modules.keys())
"""


@pytest.mark.slow
def test_loading_a_model_imports_neither_torchs_compiler_nor_the_library_of_diffusers():
    """They would take seconds of CPU in every command and every node, and the library need not be installed."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

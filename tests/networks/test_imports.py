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
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_loading_a_model_does_not_import_torchs_compiler():
    """It would take 1.3 s of CPU in every command and every node; computing on the meta device imports it."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""Models: manifests, weights, checkpoints of others, steps."""

import io
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from ddib_fed.importing import read_tensors
from ddib_fed.models.bundle import load_bundle, parse_manifest, save_bundle
from ddib_fed.models.sidecars import Tuned
from tests.fuzz.target import Target, as_file
from tests.models import examples as models


def manifest(data: bytes) -> None:
    """manifest.json of a bundle."""
    parse_manifest(data, "a bundle")


@cache
def _bundle() -> tuple[bytes, bytes]:
    """Manifest and weights of a bundle."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_bundle(path, models.manifest(), models.state())
        return (path / "manifest.json").read_bytes(), (path / "model.safetensors").read_bytes()


def weights(data: bytes) -> None:
    """model.safetensors of a bundle."""
    with as_file(data, "model.safetensors") as path:
        (path.parent / "manifest.json").write_bytes(_bundle()[0])
        load_bundle(path.parent)


def _weights() -> list[bytes]:
    import safetensors.numpy

    few = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.float16), "c": np.ones((), np.int64)}
    return [safetensors.numpy.save(few)]


def checkpoint_safetensors(data: bytes) -> None:
    """A safetensors file that is imported."""
    with as_file(data, "model.safetensors") as path:
        read_tensors(path)


def checkpoint_pickle(data: bytes) -> None:
    """A checkpoint of somebody else's, which is a pickle: read with weights alone."""
    with as_file(data, "model.pt") as path:
        read_tensors(path)


def _checkpoints() -> list[bytes]:
    import torch

    made = []
    for new in (True, False):
        file = io.BytesIO()
        torch.save({"a": torch.zeros(2, 3)}, file, _use_new_zipfile_serialization=new)
        made.append(file.getvalue())
    return made


def bundle_folder(data: bytes) -> None:
    """A whole bundle: a manifest and weights, divided by a line of dashes."""
    first, _, second = data.partition(b"\n----\n")
    with as_file(first, "manifest.json") as path:
        (path.parent / "model.safetensors").write_bytes(second)
        load_bundle(path.parent)


def _bundles() -> list[bytes]:
    return [b"\n----\n".join(_bundle())]


def steps(data: bytes) -> None:
    """steps.json beside a model."""
    Tuned.parse(data, "0" * 64, "a bundle")


def _steps() -> list[bytes]:
    shipped = Path(__file__).parents[2] / "ddib_fed" / "models" / "pretrained"
    return [path.read_bytes() for path in sorted(shipped.glob("*/steps.json"))[:2]] or [b"{}"]


TARGETS: Final[Mapping[str, Target]] = {
    "manifest": Target(manifest, lambda: [_bundle()[0]]),
    "weights": Target(weights, lambda: [_bundle()[1]], slow=True),
    "safetensors": Target(checkpoint_safetensors, _weights, slow=True),
    "pickle": Target(checkpoint_pickle, _checkpoints, slow=True),
    "bundle": Target(bundle_folder, _bundles, slow=True),
    "steps": Target(steps, _steps),
}

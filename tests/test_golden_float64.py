"""Whole translations of the public code are reproduced in float64, where nothing hides behind rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import golden, golden_float64

DATA = Path(__file__).parent / "data"
FILES = ("synthetic_float64", "unet_adm_class_guided_float64")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_reproduces_the_public_codes_translations_in_float64(name):
    """Schedules, respacings, eta, DDPM, clipping, classes and guidance, to 1e-10 of the largest value; not NaN."""
    differences = golden.compare_file(DATA / f"{name}.safetensors")
    assert len(differences) >= 6
    assert all(found.ok and found.tolerance == 1e-10 for found in differences), differences


def test_the_cases_are_those_that_the_generator_computes():
    """A case that is added to the list and not to the file is noticed."""
    held = [golden_float64.described(DATA / f"{name}.safetensors")["cases"] for name in FILES]
    assert held == [golden_float64.POINTS, golden_float64.PICTURES]


def test_the_float64_files_agree_with_the_float32_files():
    """Of another run of the public code: the same latents to what float32 rounds."""
    pairs = [
        ("synthetic_float64", "synthetic_linear", "linear.latent", "latent", 1e-4),
        ("unet_adm_class_guided_float64", "unet_adm_class_guided", "guided-clip.latent", "latent", 1e-4),
        ("unet_adm_class_guided_float64", "unet_adm_class_guided", "guided-clip.decoded", "decoded", 2e-2),
    ]
    for wide, narrow, case, output, tolerance in pairs:
        one = golden_float64.outputs(DATA / f"{wide}.safetensors")[case]
        other = golden.read_golden(DATA / f"{narrow}.safetensors").io[output].double()
        assert golden_float64.largest(one, other) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [1e-8, float("nan")])
def test_ends_one_when_a_translation_is_off_in_the_eighth_digit(spoil, tmp_path, capsys):
    """What float32 cannot see is found."""
    path = DATA / "synthetic_float64.safetensors"
    described = golden_float64.described(path)
    described["cases"] = {"linear-eta": described["cases"]["linear-eta"]}
    found = {
        key: value for key, value in golden_float64.outputs(path).items() if key.startswith("linear-eta.")
    }
    found["linear-eta.decoded"][3, 1] += spoil * found["linear-eta.decoded"].abs().max()
    write(tmp_path, described, found)
    assert golden.main([str(tmp_path / "other.safetensors")]) == 1
    assert "ABOVE" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"weights": "missing.safetensors"}, {"cases": {"other": {}}}], ids=str)
def test_refuses_a_file_that_does_not_fit(change, tmp_path, capsys):
    """Weights that are not there, and cases without settings, end 2 with a sentence."""
    path = DATA / "synthetic_float64.safetensors"
    write(tmp_path, golden_float64.described(path) | change, golden_float64.outputs(path))
    assert golden.main([str(tmp_path / "other.safetensors")]) == 2
    assert "other.safetensors" in capsys.readouterr().err


def write(folder, described, tensors):
    """A file of this form with the weights beside it."""
    (folder / "synthetic_linear.safetensors").symlink_to(DATA / "synthetic_linear.safetensors")
    kept = {key: value.contiguous().clone() for key, value in tensors.items()}
    save_file(kept, folder / "other.safetensors", {"float64": json.dumps(described)})
    assert all(value.dtype == torch.float64 for value in kept.values())

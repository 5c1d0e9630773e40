"""The public code's networks and whole translations are reproduced, and the comparison can fail."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests import golden

DATA = Path(__file__).parent / "data"
FILE = DATA / "synthetic_linear.safetensors"
WIDE = DATA / "synthetic_float64.safetensors"
LOOPS = {"reverse_step", "step", "latent", "decoded"}


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("synthetic_linear", {"eps"}),
        pytest.param("unet_plain", {"model_output"}, marks=pytest.mark.slow),
        pytest.param("unet_adm_class_guided", {"model_output", "classifier_logits"}, marks=pytest.mark.slow),
    ],
)
def test_reproduces_the_public_codes_networks(name, further, capsys):
    """Output, logits, steps, latent and decoded, with classes, clipping and guidance; the table names each."""
    differences = golden.compare_file(DATA / f"{name}.safetensors")
    assert {found.output for found in differences} == LOOPS | further
    assert all(found.ok for found in differences), differences
    if name == "synthetic_linear":
        assert golden.main([str(FILE)]) == 0
        printed = capsys.readouterr().out
        assert all(output in printed for output in LOOPS | further)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthetic_float64", "unet_adm_class_guided_float64"])
def test_reproduces_the_public_codes_translations_in_float64(name):
    """Schedules, respacings, eta, DDPM, clipping, classes and guidance, to 1e-10 of the largest value; not NaN."""
    differences = golden.compare_file(DATA / f"{name}.safetensors")
    assert len(differences) >= 6
    assert all(found.ok and found.tolerance == 1e-10 for found in differences), differences


def test_the_float64_files_have_every_case_and_agree_with_the_float32_files():
    """The files are of two runs of the public code."""
    guided = DATA / "unet_adm_class_guided_float64.safetensors"
    held = [golden.read(path)[0]["float64"]["cases"] for path in (WIDE, guided)]
    assert [len(cases) for cases in held] == [13, 3]
    for wide, narrow, case, output, tolerance in (
        (WIDE, "synthetic_linear", "linear.latent", "latent", 1e-4),
        (guided, "unet_adm_class_guided", "guided-clip.latent", "latent", 1e-4),
        (guided, "unet_adm_class_guided", "guided-clip.decoded", "decoded", 2e-2),
    ):
        one = golden.read(wide)[1][case]
        other = golden.read_golden(DATA / f"{narrow}.safetensors").io[output].double()
        assert golden.largest(output, one, other) < tolerance


@pytest.mark.slow
def test_a_guide_that_is_left_out_is_found(monkeypatch):
    monkeypatch.setattr(golden, "ClassifierGuided", lambda denoiser, classifier, scale: denoiser)
    differences = golden.compare_file(DATA / "unet_adm_class_guided.safetensors")
    assert {found.output for found in differences if not found.ok} == {"step", "decoded"}


def changed(folder: Path, *, config=None, **outputs) -> Path:
    """The file of points with other settings and outputs."""
    read = golden.read_golden(FILE)
    tensors = {f"model.{k}": v.clone() for k, v in read.state.items()}
    tensors |= {f"io.{k}": outputs.get(k, v).clone() for k, v in read.io.items()}
    save_file(
        tensors, folder / "other.safetensors", {"config": json.dumps({**read.config, **(config or {})})}
    )
    return folder / "other.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [1e-8, float("nan")])
def test_ends_one_when_a_translation_is_off_in_the_eighth_digit(spoil, tmp_path, capsys):
    """What float32 cannot see is found."""
    metadata, found = golden.read(WIDE)
    described = metadata["float64"]
    described["cases"] = {"linear-eta": described["cases"]["linear-eta"]}
    found = {key: value.clone() for key, value in found.items() if key.startswith("linear-eta.")}
    found["linear-eta.decoded"][3, 1] += spoil * found["linear-eta.decoded"].abs().max()
    (tmp_path / FILE.name).symlink_to(FILE)
    save_file(found, tmp_path / "other.safetensors", {"float64": json.dumps(described)})
    assert golden.main([str(tmp_path / "other.safetensors")]) == 1
    assert "ABOVE" in capsys.readouterr().out

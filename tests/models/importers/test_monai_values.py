"""What becomes black and white in a MONAI bundle: read from its transforms, asked for, never dropped without a word."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddib_fed.cli.main import run
from ddib_fed.errors import BundleInvalid, ExitCode, SettingsInvalid
from ddib_fed.importers import monai
from ddib_fed.importing import ImportOptions
from ddib_fed.models.bundle import load_bundle
from tests.models.importers.monai_files import DDIM, MAISI_KL, MAISI_UNET, RFLOW, UNET, made, write
from tests.models.importers.test_monai import names

pytestmark = pytest.mark.slow

LOAD = {"_target_": "LoadImaged", "keys": ["image", "label"]}
WINDOW = {
    "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -500, "a_max": 1500, "b_min": 0, "b_max": 1,
}  # fmt: skip
LABELS = {**WINDOW, "keys": ["label"], "a_min": 0, "a_max": 4}
SHARES = {
    "_target_": "ScaleIntensityRangePercentilesd", "keys": ["image"], "lower": 1, "upper": 99, "b_min": 0,
    "b_max": 1,
}  # fmt: skip
SCORE = {"_target_": "monai.transforms.NormalizeIntensityd", "keys": ["image"]}
FIXED = {**SCORE, "subtrahend": 0.5, "divisor": 0.5}
KEEPS = [
    {"_target_": "EnsureChannelFirstd", "keys": ["image"]},
    {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x[@channel, :, :]"},
    {"_target_": "RandGaussianNoised", "keys": ["image"]},
    {"_target_": "RandSpatialCropD", "keys": ["image"], "roi_size": [8, 8]},
]


@pytest.fixture(scope="module")
def weights() -> Any:
    nets = pytest.importorskip("monai.networks.nets")
    return made(nets.DiffusionModelUNet, UNET, names(2, 1)).state_dict()


@pytest.fixture
def folder(weights, tmp_path):
    """Writes a bundle of pixels with these transforms, and further keys of its configuration."""

    def write_with(*transforms: Any, **more: Any) -> Path:
        config = {"spatial_dims": 2, "channels": 1, "image_size": 16, "network_def": UNET, "scheduler": DDIM}
        return write(
            tmp_path / "b", config | {"train": {"pre": list(transforms)}} | more, {"model.pt": weights}
        )

    return write_with


@pytest.mark.parametrize(
    ("transforms", "values", "rule", "black_and_white", "ends"),
    [
        ([LOAD, WINDOW, LABELS], None, "values", (-500, 1500), (0, 1)),
        ([LOAD, *KEEPS, SHARES], None, "percentile:1,99@0:65535", (0, 65535), (0, 1)),
        ([LOAD, WINDOW, FIXED], None, "values", (-500, 1500), (-1, 1)),
        (["@scale", {**FIXED, "subtrahend": [0.25], "divisor": [0.25]}], None, "values", (-500, 1500), (-1, 3)),
        ([{**SCORE, "subtrahend": 100.0, "divisor": 50.0}], (-2.0, 3.0), "values", (0, 250), (-2, 3)),
        ([LOAD, SCORE | {"_disabled_": True}], None, None, (0, 255), (0, 1)),
        ([LOAD, WINDOW, SCORE | {"_disabled_": "$not @scores"}], None, "values", (-500, 1500), (0, 1)),
        ([{**WINDOW, "_target_": "ScaleIntensityRange", "keys": None}], None, "values", (-500, 1500), (0, 1)),
    ],
)  # fmt: skip
def test_black_and_white_are_those_of_the_samples_transforms(
    transforms, values, rule, black_and_white, ends, folder
):
    """The numbers that the network receives are those of MONAI's transforms, and other keys' are not looked at."""
    more = {"scale": WINDOW} if "@scale" in transforms else {}
    found = monai.read(folder(*transforms, scores=False, **more), ImportOptions("ct", values=values)).manifest
    assert (found.picture.intensity, (found.picture.low, found.picture.high)) == (rule, black_and_white)
    got = found.normalisation.apply(np.array([[[[-1.0, 1.0]]]]))
    np.testing.assert_allclose(got.ravel(), ends, atol=1e-6)


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ([LOAD, SCORE], r"train::pre::1 is monai\.transforms\.NormalizeIntensityd.* a deviation of its own"),
        ([LOAD, {**FIXED, "nonzero": True}], "a deviation of its own"),
        ([LOAD, FIXED], "no file says black and white .* --range"),
        ([LOAD, {"_target_": "HistogramNormalized", "keys": "image"}], "HistogramNormalized"),
        ([LOAD, {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x / 9"}], "Lambdad"),
        ([LOAD, {"_target_": "scripts.Own", "keys": "image"}], r"scripts\.Own"),
        ([LOAD, WINDOW, "$monai.transforms.ScaleIntensityd('image')"], r"pre::2 is \$monai"),
        ([LOAD, WINDOW, SHARES], "after another transform"),
        ([LOAD, {**WINDOW, "a_max": "$x"}], r"a_max is \$x: it is code"),
        ([LOAD, {**WINDOW, "a_max": -500}], "black is not below white"),
        ([LOAD, {**WINDOW, "_disabled_": "$len('x') > 1"}], "pre::1::_disabled_ is .* code"),
        ([LOAD, {**WINDOW, "_target_": "scripts.ScaleIntensityRanged"}], r"scripts\.Scale.* not read"),
        ([{"_target_": "HistogramNormalized", "keys": "image"}], "HistogramNormalized"),
        ([LOAD, "%other"], "other is HistogramNormalized"),
        ([LOAD, {**WINDOW, "b_min": "$-float(np.array(1))"}], "b_min is .*: it is code"),
        ([LOAD, {"_target_": "ScaleIntensityd", "keys": "image", "factor": "$x.y"}], "factor is .*: it is code"),
        ([LOAD, {**WINDOW, "clip": "$foo.bar"}], "clip is .*: it is code"),
        ([LOAD, {**FIXED, "nonzero": "$foo()"}], "nonzero is .*: it is code"),
        (
            [LOAD, {key: value for key, value in SHARES.items() if key != "lower"}],
            "percentiles do not rise from 0 to 100",
        ),
        ([LOAD, {**SHARES, "lower": 99, "upper": 1}], "percentiles do not rise from 0 to 100"),
        ([LOAD, {**SHARES, "lower": -5, "upper": 101}], "percentiles do not rise from 0 to 100"),
        ([LOAD, {**WINDOW, "b_min": -1e308, "b_max": 1e308}], "black is not below white"),
        ([LOAD, {**WINDOW, "b_min": 0, "b_max": 1e-310}], "black is not below white"),
    ],
)  # fmt: skip
def test_transforms_that_cannot_be_told_exactly_are_refused_by_their_name(transforms, said, folder):
    """Refuse them, and take the rule and the range of the command in their place, not one of the two alone."""
    more = {"other": {"_target_": "HistogramNormalized", "keys": "image"}} if "%other" in transforms else {}
    place = folder(*transforms, **more)
    with pytest.raises(SettingsInvalid, match=said) as caught:
        monai.read(place, ImportOptions("ct"))
    assert "--intensity RULE" in caught.value.hint or "write the value" in caught.value.hint
    rule = "window:500,2000@-500:1500"
    if "black is not" not in said:
        with pytest.raises(SettingsInvalid, match=said):
            monai.read(place, ImportOptions("ct", intensity=rule))
    found = monai.read(place, ImportOptions("ct", intensity=rule, values=(-1.0, 1.0))).manifest
    assert (found.picture.low, found.picture.high, found.picture.bits) == (-500.0, 1500.0, 16)
    assert (found.normalisation.mean, found.normalisation.std) == (0.0, 1.0)


def test_two_lists_that_scale_differently_are_refused(folder):
    with pytest.raises(SettingsInvalid, match=r"train::pre and .* validate::pre scale values differently"):
        monai.read(folder(LOAD, WINDOW, validate={"pre": [LOAD, SHARES]}), ImportOptions("ct"))


LOADING, UNKNOWN = [LOAD], [{"_target_": "HistogramNormalized", "keys": "image"}]
COMPOSE = {"_target_": "Compose", "transforms": "$@a + @b"}
CODE = "$monai.transforms.Compose([monai.transforms.LoadImaged('image'), monai.transforms.ScaleIntensityd('image')])"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"a": LOADING, "b": UNKNOWN, "t": COMPOSE}, "b::0 is HistogramNormalized"),
        ({"a": "$@b + [@s]", "b": LOADING, "s": UNKNOWN[0]}, "s is HistogramNormalized"),
        ({"preprocessing": CODE}, "preprocessing is .*transforms"),
        ({"preprocessing": "$Compose([LoadImage(), ScaleIntensity()])"}, "preprocessing is .*Compose"),
        ({"pre": [LOAD, "%other.json::h"]}, r"pre::1 is %other\.json::h"),
        ({"pre": [LOAD, "@gone"]}, "gone is @gone"),
        ({"pre": [LOAD, *UNKNOWN, {"_target_": "SaveImaged", "keys": "image"}]}, "pre::1 is HistogramNormalized"),
    ],
    ids=["joined lists", "an appended definition", "code", "bare code", "another file", "nothing", "saved samples"],
)  # fmt: skip
def test_transforms_are_found_wherever_they_are_written(more, said, folder):
    with pytest.raises(SettingsInvalid, match=said):
        monai.read(folder(**more), ImportOptions("ct"))


def test_what_becomes_of_the_networks_answer_is_no_rule_of_its_input(folder):
    save = [
        {**WINDOW, "keys": "pred", "a_max": 1, "a_min": 0, "b_max": 255},
        {"_target_": "SaveImaged", "keys": "pred"},
    ]
    found = monai.read(folder(save={"transforms": save}), ImportOptions("ct")).manifest
    np.testing.assert_allclose(found.normalisation.apply(np.array([-1.0, 1.0])), (0, 1), atol=1e-6)


def test_two_configurations_of_one_class_are_told_apart(folder):
    """In files beside each other, of which neither is the bundle's: the betas are others."""
    place = folder(LOAD)
    for name, end in (("a", 0.0195), ("b", 0.9)):
        text = json.dumps({"noise_scheduler": {**DDIM, "beta_end": end}})
        (place / f"config_{name}.json").write_text(text)
    with pytest.raises(SettingsInvalid, match=r"noise_scheduler is defined otherwise in config_b\.json"):
        monai.read(place, ImportOptions("ct"))


def test_the_command_says_the_rule(folder, tmp_path, capsys):
    """In the words of `ddib translate`; of Hounsfield units only where something says black and white."""
    line = ["model", "import", str(folder(LOAD)), "--out", str(tmp_path / "m")]
    assert run([*line, "--intensity", "window:0"]) == ExitCode.USAGE
    assert run([*line, "--intensity", "hu"]) == ExitCode.BAD_INPUT
    assert "window:0,2000@-1000:1000" in capsys.readouterr().err
    assert run([*line, "--intensity", "window:0,2000@-1000:1000"]) == 0
    picture = load_bundle(tmp_path / "m").manifest.picture
    assert (picture.low, picture.high, picture.intensity) == (-1000.0, 1000.0, "window:0,2000@-1000:1000")
    line = ["model", "import", str(folder(LOAD, WINDOW)), "--out", str(tmp_path / "hu"), "--intensity", "hu"]
    assert run(line) == 0
    picture = load_bundle(tmp_path / "hu").manifest.picture
    assert (picture.low, picture.high, picture.intensity) == (-500.0, 1500.0, "hu")


def test_a_scheduler_that_is_disabled_is_none(folder):
    place = folder(noise_scheduler={**RFLOW, "_disabled_": True})
    assert monai.read(place, ImportOptions("ct")).manifest.schedule.name == "scaled-linear"
    with pytest.raises(SettingsInvalid, match=r"noise_scheduler::_disabled_ is .*no such id"):
        monai.read(folder(noise_scheduler={**RFLOW, "_disabled_": "$len(@x) > 1"}), ImportOptions("ct"))


@pytest.fixture(scope="module")
def maisi(tmp_path_factory):
    """A folder as MAISI's are downloaded: models of CT and MR, the autoencoder, and the networks' definitions."""
    nets = pytest.importorskip("monai.apps.generation.maisi.networks.diffusion_model_unet_maisi")
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    folder, told = tmp_path_factory.mktemp("maisi"), names(3, 3)
    definitions = {"autoencoder_def": MAISI_KL, "diffusion_unet_def": MAISI_UNET, "noise_scheduler": RFLOW}
    (folder / "config_network_rflow.json").write_text(json.dumps(told | definitions))
    torch.save(made(AutoencoderKlMaisi, MAISI_KL, told).state_dict(), folder / "autoencoder_v1.pt")
    state = made(nets.DiffusionModelUNetMaisi, MAISI_UNET, told, seed=1).state_dict()
    for kind in ("ct", "mr"):
        saved = {"unet_state_dict": state, "scale_factor": torch.tensor(0.8), "num_train_timesteps": 1000}
        torch.save(saved, folder / f"diff_unet_3d_rflow-{kind}.pt")
    return folder


def told(modality: str | None) -> ImportOptions:
    return ImportOptions("maisi", size=(16, 16, 16), spacing=(1.0, 1.0, 1.0), modality=modality)


@pytest.mark.parametrize(
    ("modality", "rule", "black_and_white"),
    [("ct", "hu", (-1000, 1000)), ("mri_t1", "percentile:0,99.5@0:65535", (0, 65535))],
)
def test_maisis_model_is_that_of_the_modality_with_the_values_of_its_training(
    modality, rule, black_and_white, maisi
):
    found = monai.read(maisi, told(modality))
    assert (found.manifest.picture.intensity, found.manifest.picture.low) == (rule, black_and_white[0])
    assert found.manifest.picture.high == black_and_white[1]
    basis = next(fact.basis for fact in found.facts if fact.key == "network")
    assert "diffusion_unet_def" in basis
    kind = "ct" if modality == "ct" else "mr"
    assert any(f"rflow-{kind}.pt" in fact.value for fact in found.facts)


def test_several_models_of_maisi_in_a_folder_are_named_and_asked_for(maisi, tmp_path):
    """Refuse a --modality that contradicts the file's name, and two definitions of one network."""
    with pytest.raises(
        BundleInvalid, match=r"rflow-ct\.pt and diff_unet_3d_rflow-mr\.pt each hold"
    ) as caught:
        monai.read(maisi, told("unknown"))
    assert "--modality" in caught.value.hint
    folder = tmp_path / "one"
    folder.mkdir()
    for path in maisi.iterdir():
        if "-mr" not in path.name:
            (folder / path.name).symlink_to(path)
    with pytest.raises(SettingsInvalid, match="the modality, and no file") as caught:
        monai.read(folder, told(None))
    assert "ct_contrast" in caught.value.hint
    assert "mri" not in caught.value.hint
    with pytest.raises(SettingsInvalid, match=r"rflow-ct\.pt was trained on CT by its name"):
        monai.read(folder, told("mri_t1"))
    (folder / "config_network_ddpm.json").write_text(json.dumps({"noise_scheduler": DDIM}))
    with pytest.raises(SettingsInvalid, match=r"ddpm\.json: noise_scheduler .*config_network_rflow\.json"):
        monai.read(folder, told("ct"))


def test_an_autoencoder_of_maisi_is_told_the_modality(maisi, tmp_path):
    """Its values are those of its training, and never 8 bits without a word; a number is a modality, too."""
    definition = json.loads((maisi / "config_network_rflow.json").read_text())
    del definition["diffusion_unet_def"], definition["noise_scheduler"]
    (tmp_path / "config.json").write_text(json.dumps(definition))
    (tmp_path / "autoencoder_v1.pt").symlink_to(maisi / "autoencoder_v1.pt")
    with pytest.raises(SettingsInvalid, match=r"autoencoder_v1\.pt was trained on CT or on MR") as caught:
        monai.read(tmp_path, told(None))
    assert caught.value.hint == "--modality ct, or --modality mri"
    for modality, rule in (("1", "hu"), ("ct", "hu"), ("9", "percentile:0,99.5@0:65535")):
        assert monai.read(tmp_path, told(modality)).manifest.picture.intensity == rule

"""MONAI's bundles, MAISI's checkpoints and FLIP's files become models that compute what the library computes."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddib_fed.cli.main import run
from ddib_fed.diffusion.schedule import Level, LevelGrid, schedule_from_config
from ddib_fed.diffusion.solvers import ddim, integrate
from ddib_fed.errors import BundleInvalid, DdibError, ExitCode, FileMissing, SettingsInvalid
from ddib_fed.importers import monai
from ddib_fed.importers.latents import LEAST_PSNR, try_autoencoder
from ddib_fed.importing import Imported, ImportOptions
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.training.sources import own_volumes
from tests.models.importers.monai_files import (
    DDIM,
    KL,
    MAISI_KL,
    MAISI_UNET,
    RFLOW,
    UNET,
    VQ,
    blobs,
    made,
    old_names,
    trained_autoencoder,
    write,
)

pytestmark = pytest.mark.slow

LATENT = 3
SIDES = {2: 16, 3: 8}
STEPS, STRIDE = 20, 50
WITHIN = 1e-5
LEG_WITHIN = 1e-5  # a time that is wrong by one step of 1,000 moves a leg by 1e-4


@pytest.fixture(scope="module")
def nets():
    """The library, imported only where a test needs it."""
    return pytest.importorskip("monai.networks.nets")


@pytest.fixture(scope="module")
def schedulers():
    return pytest.importorskip("monai.networks.schedulers")


def basis(found: Imported) -> dict[str, str]:
    return {fact.key: fact.basis for fact in found.facts}


def names(dims: int, channels: int) -> dict[str, Any]:
    return {
        "spatial_dims": dims, "latent_channels": LATENT, "channels": channels, "include_body_region": False,
    }  # fmt: skip


def noise(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ras(x: Tensor) -> Tensor:
    """Volumes (N, C, D, H, W) as MONAI has them (right, anterior, superior), and back; pictures as they are."""
    return x if x.ndim == 4 else x.flip(3).permute(0, 1, 4, 3, 2)


def close(found: Tensor, wanted: Tensor, within: float) -> None:
    """Within so much of the largest number that is expected."""
    assert float((found - wanted).abs().max() / wanted.abs().max()) < within


def in_axes(network: Any) -> Any:
    """A network, or a method of one, of MONAI on samples in our axes."""
    return lambda x, *told: ras(network(ras(x), *told))


def deterministic_levels(bundle: Bundle) -> LevelGrid:
    """Steps 49, 99, ... 999, and the data."""
    levels = bundle.schedule.at_steps(list(range(STRIDE - 1, 1000, STRIDE)))
    return LevelGrid((Level(1.0, 0.0, 0.0), *levels))


def flow_levels(count: int, scale: float) -> LevelGrid:
    levels = []
    for number in range(count + 1):
        t = number / count
        length = float(np.hypot(1 - t, t))
        levels.append(Level((1 - t) / length, t / length, scale * t))
    return LevelGrid(tuple(levels))


def library_decodes(scheduler: Any, call: Any, x: Tensor) -> Tensor:
    """The library's own steps from noise to data."""
    scheduler.set_timesteps(STEPS)
    for t in range(999, 0, -STRIDE):
        x, _ = scheduler.step(call(x, torch.full((len(x),), t)), t, x)
    return x


def library_encodes(scheduler: Any, call: Any, x: Tensor) -> Tensor:
    """The library's own steps from their first level to noise."""
    scheduler.set_timesteps(STEPS)
    for t in range(STRIDE - 1, 999, STRIDE):
        x, _ = scheduler.reversed_step(call(x, torch.full((len(x),), t)), t, x)
    return x


@pytest.mark.parametrize("dims", [2, 3])
def test_a_bundle_of_pixels_computes_what_the_library_computes(dims, nets, schedulers, tmp_path):
    """Names, references and arithmetic of the configuration are resolved; the size is that of metadata.json."""
    theirs = made(nets.DiffusionModelUNet, UNET, names(dims, 1))
    config = {
        "spatial_dims": dims, "channels": "$int(@spatial_dims * 2 // @spatial_dims) - 1", "image_dim": SIDES[dims],
        "image_size": [1, *["@image_dim"] * dims], "network_def": UNET, "scheduler": DDIM,
        "network": "$@network_def.to(@device)",
        "pre": [{"_target_": "ScaleIntensityRanged", "a_min": -100.0, "a_max": 300.0, "b_min": 0, "b_max": 1}],
    }  # fmt: skip
    found = monai.read(write(tmp_path, config, {"model.pt": theirs.state_dict()}), ImportOptions("hands"))
    bundle, manifest = found.bundle(), found.manifest
    assert manifest.sample_shape == (1, *(SIDES[dims],) * dims)
    assert (manifest.picture.low, manifest.picture.high, manifest.normalisation.std) == (-100.0, 300.0, 2.0)
    assert (manifest.picture.intensity, manifest.picture.slices) == ("values", "none" if dims == 3 else None)
    x, times = noise(2, 1, *(SIDES[dims],) * dims), torch.tensor([3.0, 870.0])
    call = in_axes(theirs)
    close(bundle.network()(x, times), call(x, times), WITHIN)
    scheduler = schedulers.DDIMScheduler(**{key: value for key, value in DDIM.items() if key != "_target_"})
    levels, denoiser = deterministic_levels(bundle), bundle.denoiser()
    close(integrate(x, ddim(levels.reversed()), denoiser), library_decodes(scheduler, call, x), LEG_WITHIN)
    there = LevelGrid(levels.levels[1:])
    close(integrate(x, ddim(there), denoiser), library_encodes(scheduler, call, x), LEG_WITHIN)


def library_scheduler(kinds: Any, definition: dict[str, Any]) -> Any:
    name = definition["_target_"].rpartition(".")[2]
    return getattr(kinds, name)(**{key: value for key, value in definition.items() if key != "_target_"})


def decoded(bundle: Bundle, z: Tensor) -> Tensor:
    """Samples in the autoencoder's units of the ODE's latents."""
    units = bundle.manifest.latents.normalisation
    return bundle.autoencoder.network().decode(torch.from_numpy(units.undo(z.numpy())))


def encoded(bundle: Bundle, x: Tensor) -> Tensor:
    units = bundle.manifest.latents.normalisation
    return torch.from_numpy(units.apply(bundle.autoencoder.network().encode(x).detach().numpy()))


@pytest.mark.parametrize(
    ("dims", "kind"), [(2, "AutoencoderKL"), (3, "AutoencoderKL"), (2, "VQVAE"), (3, "VQVAE")]
)
def test_a_latent_bundle_computes_what_the_library_computes(dims, kind, nets, schedulers, tmp_path):
    """From noise to samples through the autoencoder and back, its scale read from the configuration of the training."""
    told, written = names(dims, LATENT), KL if kind == "AutoencoderKL" else VQ
    encoder = made(getattr(nets, kind), written, told)
    theirs = made(nets.DiffusionModelUNet, UNET, told, seed=1)
    factor = 2 if kind == "AutoencoderKL" else 4
    config = {
        "spatial_dims": dims, "latent_channels": LATENT, "channels": "@latent_channels",
        "latent_shape": ["@latent_channels", *[8] * dims], "autoencoder_def": written, "network_def": UNET,
        "noise_scheduler": DDIM, "load": "$@network_def.load_state_dict(torch.load('x'))",
    }  # fmt: skip
    folder = write(
        tmp_path / "b", config, {"model.pt": theirs.state_dict(), "vae.pt": {"model": encoder.state_dict()}}
    )
    scaling = {
        "_target_": "ScaleIntensityRangePercentilesd", "lower": 0, "upper": 99.5, "b_min": 0, "b_max": 1,
    }  # fmt: skip
    training = {"scale_factor": "$3 / 2", "spacing": [1.0, 1.0, 2.5], "pre": [scaling] if dims == 3 else []}
    (folder / "configs" / "train.json").write_text(json.dumps(training))
    found = monai.read(folder, ImportOptions("brain"))
    found.save(tmp_path / "out")
    bundle = load_bundle(tmp_path / "out")
    assert bundle.manifest.sample_shape == (1, *(8 * factor,) * dims)
    assert bundle.manifest.picture.spacing == ((2.5, 1.0, 1.0) if dims == 3 else None)
    assert ("assumed" in basis(found)["range"]) == (dims == 2)
    assert bundle.manifest.picture.intensity == ("percentile:0,99.5@0:65535" if dims == 3 else None)
    x, z = noise(2, 1, *(8 * factor,) * dims).clamp(0, 1), noise(2, LATENT, *(8,) * dims)
    scale, levels = 1.5, deterministic_levels(bundle)
    with torch.no_grad():
        mean = (lambda x: encoder.encode(x)[0]) if kind == "AutoencoderKL" else encoder.encode_stage_2_inputs
        theirs_z, restore = in_axes(mean)(x), in_axes(encoder.decode_stage_2_outputs)
        close(encoded(bundle, x), scale * theirs_z, WITHIN)
        close(decoded(bundle, z), restore(z / scale), WITHIN)
        scheduler = library_scheduler(schedulers, DDIM)
        ours = integrate(z, ddim(levels.reversed()), bundle.denoiser())
        wanted = library_decodes(scheduler, in_axes(theirs), z)
        close(ours, wanted, LEG_WITHIN)
        if kind == "AutoencoderKL":  # a quantiser jumps
            close(decoded(bundle, ours), restore(wanted / scale), LEG_WITHIN)
        there = LevelGrid(levels.levels[1:])
        start = encoded(bundle, x)
        close(
            integrate(start, ddim(there), bundle.denoiser()),
            library_encodes(scheduler, in_axes(theirs), scale * theirs_z),
            LEG_WITHIN,
        )


@pytest.mark.parametrize(
    ("dims", "transforms", "told", "axes"),
    [
        (2, [], None, ()),
        (2, [{"_target_": "LoadImaged"}], None, (2, 1)),
        (2, [{"_target_": "LoadImaged"}, {"_target_": "Orientationd", "axcodes": "RAS"}], None, (2, -1)),
        (3, [], None, (3, -2, 1)),
        (3, [{"_target_": "Orientationd", "axcodes": "PLI"}], None, (2, -3, -1)),
        (3, [{"_target_": "Orientationd", "axcodes": "PLI"}], "DHW", ()),
    ],
)
def test_axes_are_those_of_the_transforms(dims, transforms, told, axes, nets, tmp_path):
    """The network computes on samples, whose axes are depth, height and width, what it computes on its own arrays.

    The configuration is YAML.
    """
    theirs = made(nets.DiffusionModelUNet, UNET, names(dims, 1))
    sides = [8, 16, 4][:dims]
    config = {
        "spatial_dims": dims, "channels": 1, "network_def": UNET, "scheduler": DDIM, "image_size": [1, *sides],
    }  # fmt: skip
    folder = write(tmp_path, {**config, "transforms": transforms}, {"model.pt": theirs.state_dict()})
    (folder / "configs" / "inference.json").rename(folder / "configs" / "inference.yaml")  # JSON is YAML
    bundle, t = monai.read(folder, ImportOptions("axes", axes=told)).bundle(), torch.tensor([5.0])
    assert bundle.manifest.network.axes == axes
    x = noise(1, *bundle.manifest.sample_shape)
    own, back = x, [place - 1 for place in range(2, dims + 2)]
    if axes:
        own = x.permute(0, 1, *(abs(axis) + 1 for axis in axes))
        own = own.flip([place + 2 for place, axis in enumerate(axes) if axis < 0])
        back = list(map(abs, axes))
    assert own.shape[2:] == tuple(sides)
    wanted = theirs(own, t).flip([place + 2 for place, axis in enumerate(axes) if axis < 0])
    close(
        bundle.network()(x, t), wanted.permute(0, 1, *(2 + back.index(axis) for axis in sorted(back))), WITHIN
    )


@pytest.mark.parametrize("scheduler", [RFLOW, DDIM], ids=["flow", "ddpm"])
def test_maisis_checkpoint_is_told_its_modality_and_spacing(scheduler, nets, schedulers, tmp_path):
    """Scale and steps are those of the checkpoint; flash attention and half precision are left out."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    told = names(3, LATENT)
    encoder = made(AutoencoderKlMaisi, MAISI_KL, told)
    theirs = made(DiffusionModelUNetMaisi, MAISI_UNET, told, seed=1)
    definition = {
        **told, "autoencoder_def": MAISI_KL, "diffusion_unet_def": MAISI_UNET, "noise_scheduler": scheduler,
    }  # fmt: skip
    definition |= {"mask_generation_autoencoder_def": {**MAISI_KL, "in_channels": 8, "out_channels": 4}}
    (tmp_path / "config_network_rflow.json").write_text(json.dumps(definition))
    torch.save(encoder.state_dict(), tmp_path / "autoencoder.pt")
    checkpoint = {"epoch": 3, "num_train_timesteps": 1000, "scale_factor": torch.tensor(0.8)}
    torch.save({**checkpoint, "unet_state_dict": theirs.state_dict()}, tmp_path / "diff_unet.pt")
    with pytest.raises(SettingsInvalid, match="the spacing") as caught:
        monai.read(tmp_path, ImportOptions("ct", size=(16,) * 3, modality="ct"))
    assert "--spacing" in caught.value.hint
    spacing = (1.0, 1.5, 2.0)
    with pytest.raises(SettingsInvalid, match="the modality") as caught:
        monai.read(tmp_path, ImportOptions("ct", size=(16,) * 3, spacing=spacing))
    assert "--modality" in caught.value.hint
    found = monai.read(tmp_path, ImportOptions("ct", size=(16,) * 3, spacing=spacing, modality="mri_t1"))
    bundle = found.bundle()
    assert basis(found)["scale_factor"] == "the checkpoint"
    assert bundle.manifest.num_classes is None
    assert bundle.manifest.picture.spacing == spacing[::-1]

    def call(z: Tensor, t: Tensor) -> Tensor:
        spaced = 100 * torch.tensor([spacing]).expand(len(z), 3)
        return ras(theirs(ras(z), t, class_labels=torch.full((len(z),), 9), spacing_tensor=spaced))

    x, z = noise(1, 1, *(16,) * 3).clamp(0, 1), noise(2, LATENT, 8, 8, 8)
    with torch.no_grad():
        close(encoded(bundle, x), 0.8 * in_axes(lambda x: encoder.encode(x)[0])(x), WITHIN)
        close(decoded(bundle, z), in_axes(encoder.decode)(z / 0.8), WITHIN)
    steps = library_scheduler(schedulers, scheduler)
    if scheduler is DDIM:
        levels, wanted = deterministic_levels(bundle), library_decodes(steps, call, z)
    else:
        levels, wanted = flow_levels(STEPS, 1000.0), z
        steps.set_timesteps(STEPS)
        for t, following in pairwise([*steps.timesteps.tolist(), 0]):
            wanted, _ = steps.step(call(wanted, torch.full((2,), t)), t, wanted, following)
    close(integrate(z, ddim(levels.reversed()), bundle.denoiser()), wanted, LEG_WITHIN)


def test_weights_of_the_package_before_monai_1_4_are_read_without_the_layer_that_it_never_applied(
    nets, tmp_path
):
    """Old names of classes, arguments, schedules and tensors; the library's own reader would apply that layer."""
    more = {"include_fc": False, "use_combined_linear": False}
    encoder = made(nets.AutoencoderKL, KL, names(2, LATENT), **more)
    theirs = made(nets.DiffusionModelUNet, UNET, names(2, LATENT), seed=1, **more)

    def old(definition: dict[str, Any]) -> dict[str, Any]:
        name = definition["_target_"].rpartition(".")[2]
        renamed = {key if key != "channels" else "num_channels": value for key, value in definition.items()}
        return {**renamed, "_target_": f"generative.networks.nets.{name}", "use_flash_attention": True}

    config: dict[str, Any] = {
        "spatial_dims": 2, "latent_channels": LATENT, "channels": LATENT, "latent_shape": [8, 8],
        "autoencoder_def": {**old(KL), "use_checkpointing": True}, "network_def": old(UNET),
        "noise_scheduler": {**DDIM, "_target_": "generative.networks.schedulers.DDIMScheduler"},
    }  # fmt: skip
    config["noise_scheduler"]["schedule"] = "scaled_linear"
    weights = {"model.pt": old_names(theirs.state_dict()), "vae.pt": old_names(encoder.state_dict())}
    found = monai.read(write(tmp_path, config, weights), ImportOptions("old", scale_factor=2.0))
    bundle, z, x = found.bundle(), noise(2, LATENT, 8, 8), noise(1, 1, 16, 16)
    times = torch.tensor([3.0, 870.0])
    close(bundle.network()(z, times), theirs(z, times), WITHIN)
    close(encoded(bundle, x), 2 * encoder.encode(x)[0], WITHIN)
    assert (bundle.manifest.schedule.name, bundle.manifest.schedule.beta_end) == ("scaled-linear", 0.0195)


def test_flips_file_is_read_with_what_its_trainer_has_in_code(nets, tmp_path):
    """Both networks in one state dict, beside a discriminator; their arguments in config.json."""
    stage = {key: value for key, value in KL.items() if not key.startswith(("_", "with_"))}
    stage |= {"latent_channels": LATENT, "spatial_dims": 3}
    diffusion = {key: value for key, value in UNET.items() if key != "_target_"}
    diffusion |= {
        "in_channels": LATENT,
        "out_channels": LATENT,
        "with_conditioning": False,
        "cross_attention_dim": 0,
    }
    net = {"spatial_dims": 3, "stage_1": stage, "diffusion_model": {**diffusion, "spatial_dims": 3}}
    (tmp_path / "config.json").write_text(json.dumps({"spatial_shape": [16, 16, 8], "net_config": net}))
    encoder = made(nets.AutoencoderKL, KL, names(3, LATENT))
    theirs = made(nets.DiffusionModelUNet, UNET, names(3, LATENT), seed=1)
    state = {f"autoencoder.{key}": value for key, value in encoder.state_dict().items()}
    state |= {f"diffusion_model.{key}": value for key, value in theirs.state_dict().items()}
    state["discriminator.initial_conv.conv.weight"] = torch.zeros(3)
    torch.save(
        {"model": state, "train_conf": {"train": {"model": "Network"}}}, tmp_path / "FL_global_model.pt"
    )
    found = monai.read(tmp_path, ImportOptions("spleen", scale_factor=1.2))
    bundle, z, times = found.bundle(), noise(1, LATENT, 4, 8, 8), torch.tensor([7.0])
    close(bundle.network()(z, times), in_axes(theirs)(z, times), WITHIN)
    assert bundle.manifest.sample_shape == (1, 8, 16, 16)
    assert "FLIP" in basis(found)["schedule"]
    assert bundle.manifest.picture.spacing == (2.0, 1.5, 1.5)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize(
    "told",
    [
        {},
        {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 1000},
        {"schedule": "sigmoid_beta", "num_train_timesteps": 300},
        {"schedule": "cosine", "prediction_type": "v_prediction"},
    ],
)  # fmt: skip
def test_betas_are_the_librarys(kind, told, nets, schedulers, tmp_path):
    """To the last digits of float32, in which the library has them; but cosine, where it loses some to a difference."""
    cosine = told.get("schedule") == "cosine"
    torch.set_default_dtype(torch.float64 if cosine else torch.float32)
    theirs = getattr(schedulers, kind)(**told)
    torch.set_default_dtype(torch.float32)
    network = made(nets.DiffusionModelUNet, UNET, names(2, 1))
    definition = {"_target_": f"monai.networks.schedulers.{kind}", **told}
    config = {
        "spatial_dims": 2, "channels": 1, "network_def": UNET, "scheduler": definition, "image_size": 16,
    }  # fmt: skip
    found = monai.read(
        write(tmp_path, config, {"model.pt": network.state_dict()}), ImportOptions("betas")
    ).manifest
    ours = schedule_from_config(found.schedule).betas
    np.testing.assert_allclose(ours, theirs.betas, rtol=5e-7, atol=1e-12 if cosine else 0)
    assert found.parameterisation == ("v" if "prediction_type" in told else "eps")


# What is refused


@pytest.fixture
def bundle(nets, tmp_path):
    """Writes a latent bundle after changes, which a dotted key names, and gives its folder."""

    def write_changed(changes: dict[str, Any] | None = None, dims: int = 2) -> Path:
        told = names(dims, LATENT)
        config = {
            "spatial_dims": dims, "latent_channels": LATENT, "channels": LATENT, "latent_shape": [8] * dims,
            "autoencoder_def": dict(KL), "network_def": dict(UNET), "noise_scheduler": dict(DDIM),
        }  # fmt: skip
        for key, value in (changes or {}).items():
            first, _, second = key.partition(".")
            if second:
                config[first][second] = value
            else:
                config[first] = value
        encoder, theirs = (
            made(nets.AutoencoderKL, KL, told),
            made(nets.DiffusionModelUNet, UNET, told, seed=1),
        )
        weights = {"model.pt": theirs.state_dict(), "model_autoencoder.pt": encoder.state_dict()}
        return write(tmp_path, {key: value for key, value in config.items() if value is not None}, weights)

    return write_changed


def test_a_missing_scale_factor_is_asked_for_and_never_assumed(bundle):
    """Also where the training computed it in code."""
    for changes in ({}, {"scale_factor": "$scripts.utils.compute_scale_factor(@autoencoder)"}):
        with pytest.raises(SettingsInvalid, match="scale_factor") as caught:
            monai.read(bundle(changes), ImportOptions("brain"))
        assert "--scale-factor" in caught.value.hint
        assert "--check" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"network_def._target_": "scripts.nets.OwnUNet"},
            r"inference\.json: network_def::_target_ is scripts\.nets\.OwnUNet",
        ),
        ({"autoencoder_def._target_": "scripts.nets.VAE"}, r"autoencoder_def::_target_ is scripts\.nets\.VAE"),
        (
            {"noise_scheduler._target_": "scripts.rectified_flow.RFlowScheduler"},
            r"noise_scheduler::_target_ is .*rectified_flow",
        ),
        (
            {"noise_scheduler._target_": "scripts.flow.Flow", "mask_noise_scheduler": DDIM},
            r"noise_scheduler::_target_ is scripts\.flow\.Flow",
        ),
        ({"noise_scheduler": None, "first": DDIM, "second": RFLOW}, r"first and second are of one kind"),
        ({"network_def.channels": "$[8, 16] if True else None"}, r"network_def::channels is \$.*code"),
        ({"network_def.channels": "$__import__('os').getcwd()"}, r"network_def::channels is \$.*code"),
        ({"network_def.channels": "$[9**9**9, 8]"}, r"network_def::channels"),
        ({"network_def.channels": "@widths"}, r"@widths.*no such id"),
        ({"latent_channels": "@latent_channels"}, r"latent_channels.*circle"),
        ({"network_def.with_conditioning": True}, r"with_conditioning is true"),
        ({"network_def.in_channels": 7}, r"out_channels 3 is neither in_channels 7"),
        ({"autoencoder_def": None}, r"network_def::in_channels is 3: .*an autoencoder"),
        ({"noise_scheduler": None}, r"defines a scheduler"),
        ({"noise_scheduler.schedule": "secret"}, r"schedule is secret"),
        ({"noise_scheduler.sig_range": 4}, r"sig_range is 4"),
        ({"noise_scheduler._target_": RFLOW["_target_"], "noise_scheduler.steps_offset": 1}, r"steps_offset is 1"),
        ({"latent_shape": None}, r"size of the samples"),
        ({"network_def.channels": [8, 24]}, r"its shape is|tensor"),
        ({"network_def.norm_num_groups": 7}, r"multiple of norm_num_groups|multiple"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_exactly_is_refused_by_its_key(changes, said, bundle):
    with pytest.raises(DdibError, match=said) as caught:
        monai.read(bundle(changes), ImportOptions("brain", scale_factor=1.0))
    assert caught.value.hint


def test_folders_that_are_not_whole_say_what_is_missing(bundle, tmp_path):
    folder = bundle()
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(FileMissing, match="DiffusionModelUNet"):
        monai.read(folder, ImportOptions("brain", scale_factor=1.0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileMissing, match="no configuration"):
        monai.read(tmp_path / "empty", ImportOptions("brain"))
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(BundleInvalid, match="JSON"):
        monai.read(tmp_path / "empty", ImportOptions("brain"))


# Own samples


@pytest.fixture(scope="module")
def trained(nets):
    return trained_autoencoder()


def test_own_samples_measure_the_scale_and_catch_wrong_groups(bundle, trained):
    """Weights fit with any number of groups; a random autoencoder reconstructs nothing."""
    given = ImportOptions("brain", check=lambda _: list(blobs(8, 1)))
    folder = bundle()
    with pytest.raises(BundleInvalid, match=r"reconstructs own samples at -?\d+\.\d dB"):
        monai.read(folder, given)
    assert not monai.read(folder, ImportOptions("brain", scale_factor=50.0)).warnings
    pixels = {
        "latent_channels": None, "latent_shape": None, "channels": 1, "image_size": 16, "autoencoder_def": None,
    }  # fmt: skip
    pixels |= {"network_def.in_channels": LATENT, "network_def.out_channels": LATENT}
    assert "no autoencoder, which --check tries" in monai.read(bundle(pixels), given).warnings[0]
    folder = bundle()
    torch.save(trained.state_dict(), folder / "models" / "model_autoencoder.pt")
    found = monai.read(folder, given)
    z = trained.encode(torch.from_numpy((blobs(8, 1) + 1) / 2))[0]
    assert found.manifest.latents.normalisation.std == pytest.approx(float(z.std()), rel=1e-5)
    assert "measured" in basis(found)["scale_factor"]
    assert try_autoencoder(found.autoencoder.bundle(), blobs(8, 1)).psnr > LEAST_PSNR
    assert not found.warnings
    said = monai.read(folder, ImportOptions("brain", scale_factor=50.0, check=given.check)).warnings
    assert "deviate by" in said[0]
    for groups in (1, 2, 8):
        wrong = bundle({"autoencoder_def.norm_num_groups": groups})
        torch.save(trained.state_dict(), wrong / "models" / "model_autoencoder.pt")
        with pytest.raises(BundleInvalid, match=rf"norm_num_groups is {groups}, and with 4"):
            monai.read(wrong, given)


def test_own_volumes_are_read_in_the_axes_of_samples(bundle, tmp_path, capsys):
    """By the command: a random autoencoder reconstructs none; with a scale the model is written, facts with origin."""
    nibabel = pytest.importorskip("nibabel")
    values = np.arange(20 * 18 * 16, dtype=np.float32).reshape(20, 18, 16)
    (tmp_path / "own").mkdir()
    np.save(tmp_path / "own" / "a.npy", values)
    turned = nibabel.Nifti1Image(values.T[::-1, ::-1], np.diag([-1.0, 1.0, 1.0, 1.0]))
    nibabel.save(turned, tmp_path / "own" / "b.nii.gz")
    folder = bundle(dims=3)
    found = monai.read(folder, ImportOptions("brain", scale_factor=1.0))
    first, second = own_volumes(found.autoencoder.manifest, tmp_path / "own", 8)
    assert (first.shape, first.min(), first.max()) == ((1, 20, 18, 16), -1.0, 1.0)
    np.testing.assert_array_equal(first, second)
    line = ["model", "import", str(folder), "--out", str(tmp_path / "out")]
    assert run([*line, "--flags", "--num_channels 3"]) == ExitCode.USAGE
    assert run([*line, "--check", str(tmp_path / "own")]) == ExitCode.BAD_INPUT
    assert "reconstructs own samples at" in capsys.readouterr().err
    assert (
        run([*line, "--scale-factor", "1.5", "--spacing", "1,1,2", "--range=-1:1", "--size", "32x16x16"]) == 0
    )
    said = capsys.readouterr().out
    for words in (
        r"scale_factor +1\.5 +--scale-factor",
        r"range +-1 to 1 +--range",
        r"size +32x16x16 +--size",
    ):
        assert re.search(words, said)
    made = load_bundle(tmp_path / "out").manifest
    assert (made.sample_shape, made.picture.spacing) == ((1, 16, 16, 32), (2.0, 1.0, 1.0))
    file = ["model", "import", str(folder / "models" / "model.pt"), "--out", str(tmp_path / "other")]
    assert run([*file, "--scale-factor", "2"]) == ExitCode.USAGE
    assert run(file) == ExitCode.BAD_INPUT
    assert "network of MONAI: name the folder" in capsys.readouterr().err

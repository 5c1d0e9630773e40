"""Imports what MONAI's tools write: bundles, MAISI's checkpoints, and the files of FLIP's persistor.

Networks and the scheduler are definitions of the configurations, at the top of a folder or in configs/; the weights of
each are those of the file, there or in models/, that has exactly its tensors.

RFlowScheduler's networks predict x0 - eps, and ours eps - x0: the last layer is negated. The package before MONAI 1.4
(`generative`) makes a projection in each attention that it never applies: it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from torch import Tensor

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.files import first_problem
from ddib_fed.importers.latents import BETAS, PREDICTIONS, Foreign, Read, negated, step_schedule
from ddib_fed.importers.monai_configs import MODALITIES, Configs, Found, kind_of, units_of
from ddib_fed.importing import (
    Fact,
    Imported,
    ImportOptions,
    LibraryConfig,
    Parameterisation,
    PictureFormat,
    ScheduleConfig,
    loaded_checkpoint,
    network_shapes,
    read_tensors,
    require_fit,
    states_in,
    unwrapped,
)

NETWORKS: Final = {
    name.rpartition(".")[2]: name for name in LibraryConfig.targets() if name.startswith("monai.")
}
DENOISERS: Final = ("DiffusionModelUNet", "DiffusionModelUNetMaisi")
AUTOENCODERS: Final = tuple(name for name in NETWORKS if name not in DENOISERS)
SCHEDULERS: Final = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "RFlowScheduler")
USUAL: Final = {
    DENOISERS: ("network_def", "diffusion_unet_def", "diffusion_def", "unet_def", "diffusion", "unet", "network"),
    AUTOENCODERS: ("autoencoder_def", "vqvae_def", "stage_1_def", "autoencoder", "vqvae", "vae"),
    SCHEDULERS: ("noise_scheduler", "scheduler"),
}  # fmt: skip
"""These ids decide where several definitions are of a kind, as MAISI has networks of its masks too."""
WEIGHTS: Final = (".pt", ".pth", ".ckpt", ".safetensors")
OF_SAMPLING: Final = frozenset({
    "clip_sample", "clip_sample_min", "clip_sample_max", "set_alpha_to_one", "steps_offset", "variance_type",
    "skip_prk_steps",
})  # fmt: skip
SIZES: Final = ("image_size", "output_size", "spatial_shape", "diffusion_unet_inference::dim")
# What FLIP's trainer has in its code: https://github.com/londonaicentre/FLIP, latent_diffusion_model.
FLIP_SCHEDULER: Final = {
    "_target_": "monai.networks.schedulers.DDPMScheduler", "num_train_timesteps": 1000,
    "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195,
}  # fmt: skip
AXES: Final = {"D": 1, "S": 1, "I": -1, "H": 2, "P": 2, "A": -2, "W": 3, "R": 3, "L": -3}
"""Depth, height and width of a sample, and the ends of the body that they run to (S, P, R), or from."""
FLIP_SPACING: Final = (1.5, 1.5, 2.0)
FLIP: Final = "FLIP's trainer, assumed"


uses: Final = (
    "fit", "soften_sigma", "scale_factor", "check", "size", "intensity", "values", "spacing", "axes", "modality",
)  # fmt: skip


def recognises(path: Path) -> bool:
    """Return whether it is a folder; of diffusers' the importer of these is asked first."""
    return path.is_dir()


def read(folder: Path, given: ImportOptions) -> Imported:
    """Read the model of a folder."""
    try:
        return _imported(folder, given)
    except (AttributeError, TypeError, ValueError) as error:  # a value of another kind than MONAI's
        why = (
            f"{folder}: a value of its configuration is of the wrong kind: {str(error).partition(chr(10))[0]}"
        )
        raise BundleInvalid(
            why, hint="correct it there: the same configuration must load in MONAI"
        ) from error


def _imported(folder: Path, given: ImportOptions) -> Imported:
    configs, facts = Configs(folder, _of_flip), list[Fact]()
    denoiser, encoder = _chosen(configs, DENOISERS), _chosen(configs, AUTOENCODERS)
    if denoiser is None and encoder is None:
        others = ", ".join(
            sorted({f"{definition.key} ({definition.target})" for definition in configs.definitions()})[:6]
        )
        raise SettingsInvalid(
            f"{folder}: no configuration defines a network that is read: {others or 'there is no _target_'}",
            hint=f"{', '.join(NETWORKS)} of MONAI are read",
            facts={"field": "_target_"},
        )
    autoencoder, read = None, None
    dims = next(int(configs.arguments(each).get("spatial_dims", 2)) for each in (denoiser, encoder) if each)
    axes = _axes(configs, given, facts, dims)
    spacing = _spacing(configs, given, facts) if dims == 3 else None
    if encoder is not None:
        autoencoder, _ = _weights(configs, _network(configs, encoder, given, spacing, axes))
        facts.append(_fact("autoencoder", encoder, autoencoder))
    inner = None if autoencoder is None else autoencoder.network
    levels: dict[str, Any] = {}
    if denoiser is not None:
        network = _network(configs, denoiser, given, spacing, axes)
        _require_latents(configs, denoiser, network, inner)
        read, further = _weights(configs, network)
        facts.append(_fact("network", denoiser, read))
        facts += [Fact(key, str(value), "told at each call") for key, value in network.fixed.items()]
        levels["schedule"], levels["parameterisation"] = _schedule(configs, further, facts)
        levels["scale"] = _scale(configs, further)
        if levels["parameterisation"] == "flow":
            read = negated(read, "out.2.conv")
            facts.append(Fact("out.2.conv", "negated", "RFlowScheduler predicts x0 - eps"))
    whole = read or autoencoder
    assert whole is not None
    units, form = units_of(configs, given, facts, whole)
    sides = _of_sample(_sides(configs, given, facts, whole.network, inner), axes)
    picture = PictureFormat(fit=given.fit or "crop", **form)
    if dims == 3:
        across = None if spacing is None else _of_sample(spacing, axes)
        picture = PictureFormat(fit="pad", slices="none", spacing=across, **form)
    return Foreign(
        folder, given, autoencoder, read, sides, units, tuple(facts), picture=picture, **levels
    ).imported()  # fmt: skip


def _fact(key: str, found: Found, read: Read) -> Fact:
    return Fact(key, f"{found.name}, weights of {Path(read.source).name}", f"{found.key} in {found.file}")


def _chosen(configs: Configs, kinds: tuple[str, ...]) -> Found | None:
    """Return the definition of a class of these, a usual id first; raise if such an id has another class."""
    every, names = tuple(name for each in USUAL for name in each), USUAL[kinds]
    fitting = [each for each in configs.definitions(*kinds) if each.known]
    usual = sorted((each for each in fitting if each.key in names), key=lambda each: names.index(each.key))
    for each in () if usual else configs.definitions():
        if each.key in names and not (each.known and each.name in every):
            raise each.refused(
                "_target_", f"is {each.target}, a class that is not read",
                f"{', '.join(kinds)} of MONAI are read; where it computes what one of these does, write its name there",
            )  # fmt: skip
    if not usual and len(fitting) > 1:
        others = ", ".join(each.key for each in fitting[1:])
        raise fitting[0].refused("", f"and {others} are of one kind", f"call the one {names[0]} in the file")
    for definition in (*usual, *fitting):
        if other := configs.twice.get(definition.key.partition("::")[0]):
            hint = "keep only the configuration of the model that is meant in the folder"
            raise definition.refused("", f"is defined otherwise in {other}", hint)
        return definition
    return None


def _network(
    configs: Configs,
    found: Found,
    given: ImportOptions,
    spacing: tuple[float, ...] | None,
    axes: tuple[int, ...],
) -> LibraryConfig:
    """Return the network of a definition, without settings that change only how it is computed."""
    arguments, name = configs.arguments(found), found.name
    for key in ("with_conditioning", "include_top_region_index_input", "include_bottom_region_index_input"):
        if arguments.get(key):
            what = "attends to conditions" if key == "with_conditioning" else "is told the region of the body"
            raise found.refused(
                key, f"is true: a network that {what} is not supported",
                "import a model without conditions, or one of classes (num_class_embeds)",
            )  # fmt: skip
    if not name.endswith("Maisi") and "num_channels" in arguments:
        arguments["channels"] = arguments.pop("num_channels")
    for key in ("use_checkpoint", "use_checkpointing", "use_flash_attention", "norm_float16"):
        arguments.pop(key, None)
    if found.old and name == "VQVAE":
        arguments.pop("adn_ordering", None)
    elif found.old:
        arguments |= {"include_fc": False, "use_combined_linear": False}
    fixed = dict[str, Any]()
    if name in DENOISERS and arguments.get("num_class_embeds") and (given.modality or name.endswith("Maisi")):
        fixed["class_labels"] = _modality(configs, found, given)
    if arguments.get("include_spacing_input"):
        if spacing is None:
            hint = "--spacing X,Y,Z, the millimetres between its voxels"
            raise found.refused("", "is told the spacing, and no file says which", hint)
        fixed["spacing_tensor"] = [100.0 * side for side in spacing]
    try:
        return LibraryConfig.model_validate(
            {"target": NETWORKS[name], "arguments": arguments, "fixed": fixed, "axes": axes}
        )
    except ValidationError as error:
        hint = "models that are told conditions beside their sample are not supported"
        raise found.refused("", f"is no model of samples: {first_problem(error)[1]}", hint) from error


def _modality(configs: Configs, found: Found, given: ImportOptions) -> int:
    told = str(given.modality or configs.get("diffusion_unet_inference::modality", "modality"))
    number = configs.get(told)
    number = number if isinstance(number, int) else MODALITIES.get(told, told)
    if isinstance(number, str) and not number.isdecimal():
        kinds = {kind_of(path) for path in _weight_files(configs.folder)} - {""} or {"ct", "mr"}
        hint = f"--modality NUMBER, or one of {', '.join(each for each in MODALITIES if each[:2] in kinds)}"
        raise found.refused("", "is told the modality, and no file says which", hint)
    return int(number)


def _require_latents(
    configs: Configs, found: Found, network: LibraryConfig, encoder: LibraryConfig | None
) -> None:
    """Raise SettingsInvalid unless the network takes its latents, or samples."""
    channels = network.in_channels
    if encoder is None and (configs.get("latent_shape", "latent_channels") or channels not in (1, 3)):
        raise found.refused(
            "in_channels", f"is {channels}: samples have 1 or 3, latents an autoencoder, which is not defined",
            "copy the configuration and the weights of the autoencoder into the folder",
        )  # fmt: skip
    if encoder is not None and channels != encoder.latent_channels:
        raise found.refused(
            "in_channels", f"is {channels}, latents have {encoder.latent_channels}: the others are conditions",
            "conditions are not supported: import a model that is told its latents alone",
        )  # fmt: skip


def _of_flip(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration, with definitions from the code of FLIP's models.py and trainer.py if it is FLIP's."""
    if not isinstance(net := config.get("net_config"), Mapping):
        return config
    stage, diffusion = net.get("stage_1", {}), net.get("diffusion_model", {})
    dims = net.get("spatial_dims", 3)
    plain = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    cross = diffusion.get("cross_attention_dim") or None
    return {
        "autoencoder_def": {**plain, **stage, "spatial_dims": dims, "_target_": NETWORKS["AutoencoderKL"]},
        "network_def": {
            **diffusion, "spatial_dims": dims, "cross_attention_dim": cross, "_target_": NETWORKS["DiffusionModelUNet"],
        },
        "noise_scheduler": FLIP_SCHEDULER, "spacing": FLIP_SPACING, **config,
    }  # fmt: skip


def _axes(configs: Configs, given: ImportOptions, facts: list[Fact], dims: int) -> tuple[int, ...]:
    """Return the network's axes as a sample's: depth upwards, height to the back, width to the right."""
    turned = next(iter(configs.definitions("Orientationd", "Orientation")), None)
    code = turned and configs.get(f"{turned.key}::axcodes")
    loaded = next(iter(configs.definitions("LoadImaged", "LoadImage")), None)
    if given.axes is not None:
        code, basis = given.axes, "--axes"
    elif turned is not None and isinstance(code, str):
        code, basis = code[:dims], f"{turned.name} in {turned.file}"
    elif dims == 3:
        code, basis = "RAS", "assumed, as MONAI's; --axes says others"
    elif loaded is not None:
        code, basis = "WH", f"{loaded.name} in {loaded.file}, which reads columns first"
    else:
        code, basis = "HW", "assumed; --axes WH where LoadImage read the pictures"
    facts.append(Fact("axes", code, basis))
    low = 3 - dims
    turns = tuple(int(math.copysign(abs(AXES[each]) - low, AXES[each])) for each in code if each in AXES)
    return () if turns == tuple(range(1, dims + 1)) else turns


def _of_sample(values: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Return numbers of the network's axes in the order of a sample's."""
    places = {abs(axis): value for axis, value in zip(axes, values, strict=True)} if axes else {}
    return tuple(places[axis] for axis in sorted(places)) or values


def _schedule(
    configs: Configs, further: Mapping[str, Any], facts: list[Fact]
) -> tuple[ScheduleConfig, Parameterisation]:
    scheduler = _chosen(configs, SCHEDULERS)
    if scheduler is None:
        raise SettingsInvalid(
            f"{configs.folder}: no configuration defines a scheduler, which tells what the network was trained on",
            hint='add "noise_scheduler": {"_target_": "monai.networks.schedulers.DDPMScheduler", ...}, as in training',
            facts={"field": "noise_scheduler"},
        )
    inexact = "a schedule that cannot be computed exactly is not imported"
    arguments = configs.arguments(scheduler)
    steps = int(arguments.pop("num_train_timesteps", 1000))
    if steps != (trained := further.get("num_train_timesteps", steps)):
        raise scheduler.refused(
            "num_train_timesteps", f"is {steps}: the checkpoint was trained on {trained}", inexact
        )
    basis = FLIP if scheduler.arguments is FLIP_SCHEDULER else f"{scheduler.key} in {scheduler.file}"
    if scheduler.name == "RFlowScheduler":
        if offset := arguments.get("steps_offset"):
            raise scheduler.refused(
                "steps_offset", f"is {offset}: the network would get other times", inexact
            )
        facts.append(Fact("schedule", f"flow, times 0 to {steps}", basis))
        return ScheduleConfig("flow", scale=float(steps)), "flow"
    prediction = str(arguments.pop("prediction_type", "epsilon"))
    kind = str(arguments.pop("schedule", arguments.pop("beta_schedule", "linear_beta")))
    ends = arguments.pop("beta_start", 1e-4), arguments.pop("beta_end", 2e-2)
    if kind not in BETAS or (kind == "cosine" and scheduler.old):
        raise scheduler.refused(
            "schedule", f"is {kind}: {', '.join(BETAS)} are read, cosine of monai alone", inexact
        )
    if prediction not in PREDICTIONS:
        raise scheduler.refused(
            "prediction_type", f"is {prediction}: {', '.join(PREDICTIONS)} are read", inexact
        )
    usual = {"s": 8e-3, "sig_range": 6}
    for key, value in arguments.items():
        if key not in OF_SAMPLING and usual.get(key) != value:
            raise scheduler.refused(key, f"is {value}, which is not read", inexact)
    schedule = step_schedule(BETAS[kind], steps, ends)
    between = "" if kind == "cosine" else f", betas {ends[0]:g} to {ends[1]:g}"
    facts.append(Fact("schedule", f"{BETAS[kind]}, {steps} steps{between}, predicts {prediction}", basis))
    return schedule, PREDICTIONS[prediction]


def _spacing(configs: Configs, given: ImportOptions, facts: list[Fact]) -> tuple[float, float, float] | None:
    keys = ["spacing", "diffusion_unet_inference::spacing"]
    keys += [f"{each.key}::pixdim" for each in configs.definitions("Spacingd", "Spacing")]
    places = [(given.spacing, "--spacing"), *((configs.get(key), key) for key in keys)]
    for value, basis in places:
        if isinstance(value, list | tuple) and [type(each) in (int, float) for each in value] == [True] * 3:
            x, y, z = (float(each) for each in value)
            flip = value == list(FLIP_SPACING) and basis == "spacing"
            facts.append(Fact("spacing", f"{x:g} x {y:g} x {z:g}", FLIP if flip else basis))
            return x, y, z
    return None


def _sides(
    configs: Configs,
    given: ImportOptions,
    facts: list[Fact],
    network: LibraryConfig,
    encoder: LibraryConfig | None,
) -> tuple[int, ...]:
    """Return the sides of a sample, not of its latent; `network` is the encoder if it is the only one."""
    form = f"{'autoencoder' if encoder else 'network'}_data_format"
    inputs = (configs.metadata.get(form) or {}).get("inputs", {}).values()
    factor = 1 if encoder is None else encoder.divisor
    candidates = [
        (given.size, "--size", 1),
        (configs.get("latent_shape") if encoder else None, "latent_shape", factor),
        *((configs.get(key), key, 1) for key in SIZES),
        *((part.get("spatial_shape"), "metadata.json", 1) for part in inputs if part.get("type") == "image"),
    ]
    if network is encoder:
        candidates.append((256 if network.dims == 2 else 64, "assumed; an autoencoder takes any: --size", 1))
    for value, basis, times in candidates:
        sides = [value] * network.dims if isinstance(value, int) else list(value or ())[-network.dims :]
        if len(sides) == network.dims and all(isinstance(side, int) and side > 0 for side in sides):
            whole = tuple(times * side for side in sides)
            facts.append(Fact("size", "x".join(map(str, whole)), basis))
            return whole
    raise SettingsInvalid(
        f"{configs.folder}: no configuration says the size of the samples that the network was trained on",
        hint=f"--size {'x'.join(['128'] * network.dims)}, as many sides",
        facts={"field": "size"},
    )


def _scale(configs: Configs, further: Mapping[str, Any]) -> Fact | None:
    for told, basis in (
        (further.get("scale_factor"), "the checkpoint"),
        (configs.get("scale_factor"), "scale_factor in the configuration"),
    ):
        scale = told.item() if isinstance(told, Tensor) and told.numel() == 1 else told
        if isinstance(scale, int | float) and 0.0 < scale < math.inf:
            return Fact("scale_factor", repr(float(scale)), basis)
    return None


def _weight_files(folder: Path) -> list[Path]:
    places = [path for place in (folder, folder / "models") for path in sorted(place.glob("*"))]
    return [path for path in places if path.suffix in WEIGHTS]


def _weights(configs: Configs, network: LibraryConfig) -> tuple[Read, Mapping[str, Any]]:
    """Return the weights of the file that has exactly the network's tensors, and the values beside them."""
    wanted = {key: tensor.shape for key, tensor in network_shapes(network).items()}
    fitting, nearest = list[tuple[Path, Read, Mapping[str, Any]]](), Read(network, {}, str(configs.folder))
    for path in _weight_files(configs.folder):
        for part, further in _parts(path, next(iter(wanted))):
            read = Read(network, _renamed(wanted, part), str(path))
            nearest = max(nearest, read, key=lambda each: len(wanted.keys() & each.state.keys()))
            if {key: tensor.shape for key, tensor in read.state.items()} == wanted:
                fitting.append((path, read, further))
                break
    kind = kind_of(network.fixed.get("class_labels"))
    for chosen in (
        [each for each in fitting if each[0].name in configs.text],
        [each for each in fitting if kind and kind_of(each[0]) == kind],
    ):
        fitting = chosen if len(fitting) > 1 and chosen else fitting
    if len(fitting) > 1:
        raise BundleInvalid(
            f"{configs.folder}: {' and '.join(path.name for path, _, _ in fitting)} each hold a {network.name}",
            hint="--modality names the network of MAISI that is meant; or keep only its file in the folder",
            facts={"file": fitting[0][0].name[:100]},
        )
    mapped, further = fitting[0][1:] if fitting else (nearest, {})
    if not wanted.keys() & mapped.state.keys():
        raise FileMissing(
            f"{configs.folder}: no file holds the weights of the {network.name}",
            hint=f"copy them into models/, as {' or '.join(WEIGHTS)}",
        )
    hint = f"no file of the folder has the tensors of the {network.name} of its configuration"
    require_fit(network, mapped.state, mapped.source, hint)
    return mapped, further


def _parts(path: Path, first: str) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Any]]]:
    """Yield the networks in a checkpoint that have a tensor `first`, in float32, and the values beside them."""
    further: Mapping[str, Any] = {}
    if path.suffix == ".safetensors":
        states: Iterable[Mapping[str, Tensor]] = [read_tensors(path).state]
    else:
        loaded = loaded_checkpoint(path)
        states = states_in(loaded)
        if isinstance(loaded, Mapping):
            further = {key: loaded[key] for key in ("scale_factor", "num_train_timesteps") if key in loaded}
    for each in states:
        state = unwrapped(each, path)
        starts = {key.removesuffix(first) for key in state if f".{key}".endswith(f".{first}")}
        for start in sorted(starts, key=lambda start: ("ema" not in start, start)):  # averaged weights first
            part = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            yield {key: value.float() for key, value in part.items()}, further


def _renamed(wanted: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state under names of now, from those before MONAI 1.4 (`load_old_state_dict` of each network)."""
    tensors = dict(state)
    for key in wanted:
        old = (
            key.replace(".attn.to_", ".to_")
            .replace(".attn.out_proj.", ".proj_attn.")
            .replace("postconv", "conv")
        )
        if key not in tensors and old in tensors:
            tensors[key] = tensors.pop(old)
    # Of an attention without its last layer; weights of `generative` have it, and are never multiplied by it.
    return {key: value for key, value in tensors.items() if key in wanted or ".proj_attn." not in key}

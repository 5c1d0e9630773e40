"""Models that other code wrote: what of them is not a pixel network, and what only looks like one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from benchmarks.trust.soundness.attack import Result, attack, ddib
from tests.models.importers import pipelines
from tests.models.importers.test_guided import FLAGS, SMALL, random_state


def _pipeline(folder: Path, **how: Any) -> Path:
    """A pipeline of pixels, as the library writes it."""
    made = diffusers.DDPMPipeline(pipelines.unet(pipelines.TINY), diffusers.DDPMScheduler())
    made.save_pretrained(folder, **how)
    return folder


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _put(name: str, text: str) -> Any:
    def put(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return put


def _vq_inside(folder: Path) -> None:
    diffusers.VQModel(block_out_channels=(32,), norm_num_groups=32).save_pretrained(folder / "vqvae")


def _lora(place: str) -> Any:
    def put(folder: Path) -> None:
        (folder / place).parent.mkdir(exist_ok=True)
        save_file({"unet.down.lora.up.weight": torch.zeros(2, 2)}, folder / place)

    return put


MORE: dict[str, tuple[Any, str]] = {
    "a VQModel in a folder that the index does not list": (_vq_inside, "VQModel"),
    "an AutoencoderKL in the index, its folder missing": (
        lambda f: _index(f, vae=["diffusers", "AutoencoderKL"]),
        "AutoencoderKL",
    ),
    "an autoencoder of one's own code": (lambda f: _index(f, vae=[None, ["my_vae.py", "MyVAE"]]), "MyVAE"),
    "a first stage under another name": (
        lambda f: _index(f, first_stage=["mylib", "Decoder"]),
        "first_stage",
    ),
    "a text encoder of transformers in a folder": (
        _put("text_encoder/config.json", '{"architectures": ["CLIPTextModel"]}'),
        "CLIPTextModel",
    ),
    "a ControlNet beside it": (
        _put("controlnet/config.json", '{"_class_name": "ControlNetModel"}'),
        "ControlNetModel",
    ),
    "a LoRA beside it": (_lora("pytorch_lora_weights.safetensors"), "pytorch_lora_weights.safetensors"),
    "a LoRA in a folder of its own": (_lora("lora/weights.safetensors"), "lora"),
    "an adapter in unet/": (_lora("unet/adapter_model.safetensors"), "adapter_model.safetensors"),
    "a LoRA in capitals": (_lora("unet/Style_LORA.safetensors"), "Style_LORA.safetensors"),
    "a LoRA called by its style": (_lora("watercolour.safetensors"), "watercolour.safetensors"),
    "an unclosed model_index.json": (_put("model_index.json", '{"_class_name":'), "model_index.json"),
}


@attack(
    3,
    "`ddib model import --diffusers` of a pixel network beside an autoencoder, text encoder, ControlNet or LoRA",
    before="imported as a pixel model without a word; a LoRA ignored",
    test="tests/models/importers/test_pipeline_folders.py"
    "::test_a_latent_diffusion_pipeline_is_not_imported_as_a_pixel_model",
)
def parts(folder: Path, result: Result) -> None:
    whole = _pipeline(folder / "whole")
    for number, (what, (put, word)) in enumerate(MORE.items()):
        copy = _copy(whole, folder / f"p{number}")
        put(copy)
        said = ddib("model", "import", "--diffusers", copy, "--out", folder / f"m{number}")
        result.refused(what, said, word, codes=(3,))
        if (folder / f"m{number}").exists():
            result.add(f"{what}: a bundle was written", held=False)


@attack(
    3,
    "fp16 variants and sharded weights, alone and together, and a shard that is missing or of another index",
    before="not read",
    test="tests/models/importers/test_pipeline_folders.py::test_every_layout_of_weights_is_read",
)
def layouts(folder: Path, result: Result) -> None:
    for number, how in enumerate(
        ({"variant": "fp16"}, {"max_shard_size": "50KB"}, {"variant": "fp16", "max_shard_size": "50KB"})
    ):
        copy = _pipeline(folder / f"l{number}", **how)
        said = ddib("model", "import", "--diffusers", copy, "--check", "--out", folder / f"m{number}")
        result.add(str(how), said.code == 0, said.code, said.error if said.code else "")
    shards = sorted((folder / "l1" / "unet").glob("*-of-*.safetensors"))
    shards[-1].unlink()
    said = ddib("model", "import", "--diffusers", folder / "l1", "--out", folder / "less")
    result.refused("a shard is missing", said, shards[-1].name, codes=(3, 6))
    shutil.copy(shards[1], shards[0])
    said = ddib("model", "import", "--diffusers", folder / "l1", "--out", folder / "swapped")
    result.refused("a shard is another's copy", said, codes=(3, 6))


@attack(
    3,
    "checkpoints of Stable Diffusion, DiT, SiT, EDM and a LoRA as a file",
    before="messages did not name what was found",
    test="tests/cli/models/test_importing.py::test_files_of_other_models_are_named",
)
def files(folder: Path, result: Result) -> None:
    tensors = {
        "Stable Diffusion": "model.diffusion_model.input_blocks.0.0.weight",
        "DiT": "x_embedder.proj.weight",
        "LoRA": "lora_unet_down_blocks_0.lora_up.weight",
        "EDM": "model.map_noise.freqs",
        "nothing known": "whatever.weight",
    }
    for what, name in tensors.items():
        path = folder / f"{what.replace(' ', '-')}.pt"
        also = (
            {"first_stage_model.encoder.conv_in.weight": torch.zeros(1)} if what == "Stable Diffusion" else {}
        )
        torch.save({name: torch.zeros(4, 4), **also}, path)
        said = ddib("model", "import", path, "--out", folder / "m")
        result.refused(what, said, path.name, codes=(3,))
    torch.save({"state_dict": {"x": torch.zeros(1)}, "hyper": object}, folder / "code.pt")
    said = ddib("model", "import", folder / "code.pt", "--out", folder / "m")
    result.refused("a pickle that needs code", said, "code.pt", codes=(3,))


@attack(
    3,
    "a checkpoint of the public code without `--flags`, as text and JSON, and with flags that the shapes contradict",
    before="the public defaults were taken without a word",
    test="tests/cli/models/test_importing.py::test_public_defaults_alone_are_a_warning_everywhere",
)
def defaults(folder: Path, result: Result) -> None:
    torch.save(random_state(SMALL), folder / "ema.pt")
    for number, further in enumerate((("--format", "text"), ("--format", "json"))):
        said = ddib("model", "import", folder / "ema.pt", "--out", folder / f"m{number}", *further)
        result.add(f"warned, {further[1]}", said.code == 0 and "--flags" in said.text, said.code)
        record = (folder / f"m{number}" / "manifest.json").read_text()
        result.add(f"recorded in the manifest, {further[1]}", "default" in record)
    wrong = FLAGS.replace("--num_channels 32", "--num_channels 64")
    said = ddib("model", "import", folder / "ema.pt", "--flags", wrong, "--out", folder / "wrong")
    result.refused("flags of another width", said, "num_channels", codes=(3,))

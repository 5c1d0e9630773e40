"""What docs/own-pictures.md tells users of MONAI and diffusers to type, with tiny models of theirs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.testing import NodeProcess
from tests.e2e.harness import find_any, weight_windows
from tests.e2e.pages.test_readme import ROOT, Machines, commands
from tests.models.importers.monai_files import (
    KL,
    RFLOW,
    UNET,
    blobs,
    made,
    train_on_blobs,
    trained_autoencoder,
    write,
)

pytestmark = [pytest.mark.e2e]

PAGE = (ROOT / "docs" / "own-pictures.md").read_text()
SECTION = PAGE.split("\n## Bring your own model\n")[1].split("\n## ")[0]
LATENT = 3
# Random weights make no white latents, which a leg of less depth need not.
SHORTER = " --set depth=0.9 --evaluations 12"


def write_blobs(folder: Path, channels: int = 1) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(blobs(12, 1, channels)):
        pixels = np.rint(127.5 * (picture.transpose(1, 2, 0) + 1)).astype(np.uint8)
        (folder / f"{number:02}.png").write_bytes(encode_png(pixels))


def write_bundle(folder: Path, encoder: torch.nn.Module, seed: int) -> None:
    monai = pytest.importorskip("monai.networks.nets")
    told = {"spatial_dims": 2, "latent_channels": LATENT, "channels": LATENT}
    theirs = made(monai.DiffusionModelUNet, UNET, told, seed=seed)
    config = {
        **told, "latent_shape": [LATENT, 8, 8], "autoencoder_def": KL, "network_def": UNET, "noise_scheduler": RFLOW,
    }  # fmt: skip
    weak = {key: 0.1 * value for key, value in theirs.state_dict().items()}
    write(folder, config, {"model.pt": weak, "model_autoencoder.pt": encoder.state_dict()})


def test_bundles_become_nodes_and_a_translation(tmp_path: Path) -> None:
    """The page's lines; no weights of a side are at the other."""
    machines, encoder = Machines(tmp_path), trained_autoencoder()
    for number, (who, name) in enumerate((("north", "t1"), ("south", "t2"))):
        write_blobs(machines.machine(who) / "slices")
        write_bundle(machines.machine(who) / f"{name}-bundle", encoder, number)
    try:
        for who, line in commands(SECTION):
            if who:
                machines.type(who, line + (SHORTER if " translate " in line else ""))
            if " init node " in line:
                NodeProcess(machines.machine(who)).configure({"least_depth": 0.5})
    finally:
        machines.stop()
    north, south = (machines.machine(who) for who in ("north", "south"))
    translated = sorted((north / "as-t2").glob("*.png"))
    assert len(translated) == 12
    assert read_image(translated[0]).pixels.shape == (16, 16, 1)
    record = json.loads((north / "as-t2" / "00.json").read_text())
    assert record["target_domain"] == "t2"
    assert not find_any(weight_windows(north / "t1"), south)
    assert not find_any(weight_windows(south / "t2"), north)


def test_a_pipeline_of_diffusers_is_imported_and_translates(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=LATENT, sample_size=16,
    )  # fmt: skip
    data = torch.from_numpy(blobs(64, 0, channels=3))
    train_on_blobs(vae, lambda x: vae.decode(vae.encode(x).latent_dist.mean).sample, data)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=LATENT, out_channels=LATENT, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    machine = Machines(tmp_path).machine("")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    diffusers.LDMPipeline(vae, unet, scheduler).save_pretrained(machine / "ldm-faces")
    write_blobs(machine / "pictures", channels=3)
    machines = Machines(tmp_path)
    for who, line in commands(SECTION):
        if not who:
            machines.type(who, line + (SHORTER if " translate " in line else ""))
    assert len(list((machine / "there").glob("*.returned.png"))) == 12

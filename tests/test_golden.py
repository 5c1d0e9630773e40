"""The public code's network is reproduced, whatever its settings, and the comparison can fail."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ddib_fed.diffusion.schedule import space_timesteps
from ddib_fed.networks.mlp import SyntheticModel
from tests import golden

FILE = Path(__file__).parent / "data" / "synthetic_linear.safetensors"
CONFIG = {
    "num_channels": 32,
    "num_res_blocks": 1,
    "dropout": 0.1,
    "use_checkpoint": False,
    "use_fp16": False,
    "in_channels": 2,
    "learn_sigma": False,
    "diffusion_steps": 60,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}
VARIANTS = [
    {},
    {"noise_schedule": "cosine"},
    {"timestep_respacing": "ddim20"},
    {"timestep_respacing": "5,5,10", "rescale_timesteps": True},
    {"predict_xstart": True},
    {"in_channels": 3, "num_res_blocks": 2, "num_channels": 64},
    {"learn_sigma": True},
]


def alpha_bars(config) -> list[float]:
    """By the textbook, in plain numbers."""
    steps = config["diffusion_steps"]
    if config["noise_schedule"] == "linear":
        first, last = 0.1 / steps, 20.0 / steps
        betas = [first + (last - first) * i / (steps - 1) for i in range(steps)]
    else:
        f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = [min(1 - f[i + 1] / f[i], 0.999) for i in range(steps)]
    products, bar = [], 1.0
    for beta in betas:
        bar *= 1 - beta
        products.append(bar)
    return products


class Textbook:
    """DDIM in x0 and eps, step by step, knowing nothing of angles, grids or solvers."""

    def __init__(self, network, config) -> None:
        self.network, self.config = network, config
        self.kept = space_timesteps(config["diffusion_steps"], config["timestep_respacing"])
        every = alpha_bars(config)
        self.bars = [every[i] for i in self.kept]

    def move(self, x, index: int, bar: float):
        here = self.bars[index]
        scale = 1000 / self.config["diffusion_steps"] if self.config["rescale_timesteps"] else 1.0
        out = self.network(x, torch.tensor([self.kept[index] * scale], dtype=torch.float32))
        out = out[:, : x.shape[1]]
        if self.config["predict_xstart"]:
            x0, eps = out, (x - math.sqrt(here) * out) / math.sqrt(1 - here)
        else:
            x0, eps = (x - math.sqrt(1 - here) * out) / math.sqrt(here), out
        return math.sqrt(bar) * x0 + math.sqrt(1 - bar) * eps

    def up(self, x, index: int):
        return self.move(x, index, (*self.bars, 0.0)[index + 1])

    def down(self, x, index: int):
        return self.move(x, index, self.bars[index - 1] if index else 1.0)


def write_golden(path: Path, changes) -> None:
    """A golden file by the textbook: the network is ours (proven by FILE), the loops are not."""
    config = {**CONFIG, **changes}
    torch.manual_seed(3)
    channels = config["in_channels"]
    network = SyntheticModel(
        channels, channels * (1 + config["learn_sigma"]), config["num_channels"], config["num_res_blocks"]
    )
    state = {k: (0.2 * torch.randn_like(v)).half() for k, v in network.state_dict().items()}
    network.load_state_dict({k: v.float() for k, v in state.items()})
    book = Textbook(network.eval(), config)
    x = torch.randn(5, channels)
    index = torch.tensor([0, 1, 7, len(book.kept) - 2, len(book.kept) - 1])
    t = torch.tensor([0, 3, 20, 40, 59])
    with torch.no_grad():
        latent = x
        for i in range(len(book.kept)):
            latent = book.up(latent, i)
        decoded = latent
        for i in reversed(range(len(book.kept))):
            decoded = book.down(decoded, i)
        each = [(x[k : k + 1], int(i)) for k, i in enumerate(index)]
        output = network(x, t.float())
        io = {
            "x": x,
            "t": t,
            "step_index": index,
            "eps": output[:, :channels],
            "model_output": output,
            "reverse_step": torch.cat([book.up(row, i) for row, i in each]),
            "step": torch.cat([book.down(row, i) for row, i in each]),
            "latent": latent,
            "decoded": decoded,
        }
    tensors = {f"model.{k}": v for k, v in state.items()} | {f"io.{k}": v for k, v in io.items()}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, {"config": json.dumps(config)})


def test_reproduces_the_public_codes_network():
    """Output, both steps, latent and decoded points within 1e-4 of the output's largest value."""
    differences = golden.compare(golden.read_golden(FILE))
    assert {found.output for found in differences} == {"eps", "reverse_step", "step", "latent", "decoded"}
    assert all(found.ok for found in differences), differences


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_follows_every_setting(changes, tmp_path):
    """Schedules, respacings, x0 prediction, rescaled times, sizes and learned variance, against textbook loops."""
    write_golden(tmp_path / "made.safetensors", changes)
    differences = golden.compare(golden.read_golden(tmp_path / "made.safetensors"))
    assert len(differences) == 6
    assert all(found.ok for found in differences), differences


@pytest.mark.parametrize("rows_and_width", [(5, 1), (1, 2)])
def test_refuses_outputs_of_another_shape(rows_and_width, tmp_path, capsys):
    """An output that is too narrow, too wide or too short is no difference to measure."""
    read = golden.read_golden(FILE)
    tensors = {f"model.{k}": v.clone() for k, v in read.state.items()}
    tensors |= {f"io.{k}": v.clone() for k, v in read.io.items()} | {"io.eps": torch.ones(rows_and_width)}
    save_file(tensors, tmp_path / "other.safetensors", {"config": json.dumps(read.config)})
    assert golden.main([str(tmp_path / "other.safetensors")]) == 2
    assert "shape" in capsys.readouterr().err


def test_ends_zero_and_prints_a_line_for_each_output(capsys):
    """The table names each output."""
    assert golden.main([str(FILE)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("eps", "reverse_step", "step", "latent", "decoded"))


@pytest.mark.slow
@pytest.mark.parametrize(("output", "spoil"), [("eps", float("nan")), ("step", 1e-3), ("decoded", 1e-3)])
def test_ends_one_when_an_output_differs(output, spoil, tmp_path, capsys):
    """One number off, in any output, is found; so is NaN."""
    read = golden.read_golden(FILE)
    io = {k: v.clone() for k, v in read.io.items()}
    io[output][0, 0] += spoil * io[output].abs().max()
    tensors = {f"model.{k}": v.clone() for k, v in read.state.items()} | {f"io.{k}": v for k, v in io.items()}
    save_file(tensors, tmp_path / "spoilt.safetensors", {"config": json.dumps(read.config)})
    assert golden.main([str(tmp_path / "spoilt.safetensors")]) == 1
    assert "ABOVE" in capsys.readouterr().out


def test_refuses_what_is_no_golden_file(tmp_path, capsys):
    """A missing file, and one of another kind."""
    (tmp_path / "text").write_text("hello")
    assert golden.main([str(tmp_path / "missing"), str(tmp_path / "text")]) == 2
    assert golden.main([]) == 2
    assert "usage" in capsys.readouterr().err

"""Sets up north and south with an earlier release: run with that release, and nothing of this one, on the path.

    python -P earlier_institutions.py FOLDER KIND:NORTH_PORT:SOUTH_PORT...

For each kind, points or pictures, in FOLDER/KIND. Each institution hosts one small model of its own in a node of both
roles, admits the other, and has a client.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from click.testing import CliRunner
from ddib_fed.models.networks import build_network
from ddib_fed.models.normalisation import Normalisation

from ddib_fed.cli.main import cli
from ddib_fed.models.bundle import save_bundle
from ddib_fed.models.manifest import Manifest, MlpConfig, UNetConfig

CLIENTS = {"north": "alice", "south": "bob"}
POINTS = {
    "sample_shape": (2,),
    "network": MlpConfig(width=16, blocks=1, embedding=16, features=8),
    "normalisation": Normalisation(std=1.0),
}
PICTURES = {
    "sample_kind": "picture",
    "sample_shape": (1, 16, 16),
    "network": UNetConfig(
        image_size=16, in_channels=1, model_channels=32, out_channels=1, num_res_blocks=1, channel_mult=(1.0, 1.0)
    ),
    "normalisation": Normalisation(std=0.5),
    "soften_sigma": 0.02,
}  # fmt: skip


def ddib(*words: object) -> str:
    done = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def save_model(path: Path, domain: str, fields: dict, seed: int) -> None:
    """A random network that answers a few hundredths, so that the latents of noise are noise."""
    manifest = Manifest(name=domain, domain=domain, **fields)
    torch.manual_seed(seed)
    network = build_network(manifest.network)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.03)
    save_bundle(path, manifest, network.state_dict())


def main(folder: Path, kind: str, ports: dict[str, str]) -> None:
    prints = {}
    for seed, (side, port) in enumerate(ports.items()):
        config = folder / side / "node.toml"
        ddib("init", "node", "--institution", f"{side}.example", "--role", "both", "--domain", f"{side}-{kind}",
             "--listen", f"127.0.0.1:{port}", "--address", f"localhost:{port}", "--out", folder / side)  # fmt: skip
        config.write_text(re.sub(r"(?m)^# (running_jobs|threads) = \d+", r"\1 = 1", config.read_text()))
        save_model(
            folder / side / "model", f"{side}-{kind}", POINTS if kind == "points" else PICTURES, seed + 1
        )
        shown = ddib("peer", "export", "--config", config, "--out", folder / f"{side}.peer")
        prints[side] = next(word for word in shown.split() if word.startswith("SHA256:"))
        name = CLIENTS[side]
        ddib("init", "client", "--node-config", config, "--name", name, "--out", folder / name)
    for side, other in (("north", "south"), ("south", "north")):
        ddib("peer", "add", folder / f"{other}.peer", "--config", folder / side / "node.toml", "--fingerprint",
             prints[other])  # fmt: skip


if __name__ == "__main__":
    for words in sys.argv[2:]:
        kind, north, south = words.split(":")
        main(Path(sys.argv[1], kind), kind, {"north": north, "south": south})

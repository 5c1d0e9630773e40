"""Nodes whose network is so small that a test takes milliseconds; everything else about them is real."""

import re

import numpy as np
import torch

from ddib_fed.data.points import to_npy
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.local_party import LocalParty, ServingParty
from ddib_fed.engine.party import Decoded, Encoded, Leg, ToDecode, ToEncode
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import Bundle, make_bundle, save_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import MlpConfig
from ddib_fed.node.admin import Metrics
from ddib_fed.node.config import ModelSection, NodeConfig, NodeSection, render_node_toml
from ddib_fed.node.role import NodeContext
from ddib_fed.security.audit import AuditLog
from ddib_fed.security.peers import begin_trust
from ddib_fed.store import NodeStore
from tests.node.institutions import Institution

NETWORK = MlpConfig(width=16, blocks=1, embedding=16, features=8)


def manifest(name: str = "tiny", **changes) -> Manifest:
    fields = {"name": name, "domain": "moons", "sample_shape": (2,), "network": NETWORK}
    return Manifest(**{**fields, **changes})


def state(answer: float = 0.0) -> dict[str, torch.Tensor]:
    """The weights of a network that answers the same number whatever it is asked."""
    network = build_network(NETWORK)
    torch.nn.init.zeros_(network.leave.weight)
    torch.nn.init.constant_(network.leave.bias, answer)
    return network.state_dict()


def tiny_bundle(name: str = "tiny", *, answer: float = 0.0, **changes) -> Bundle:
    return make_bundle(manifest(name, **changes), state(answer))


def tiny_engine(name: str = "tiny", *, answer: float = 0.0, **changes) -> ServingParty:
    return ServingParty(tiny_bundle(name, answer=answer, **changes), device="cpu", threads=1)


def encode(
    party: LocalParty, samples: np.ndarray, settings: SolverSettings, label=None, noise=None
) -> Encoded:
    return party.encode(ToEncode(0, samples, label, noise), Leg(settings))


def decode(party: LocalParty, latent: Latent, settings: SolverSettings, label=None) -> Decoded:
    return party.decode(ToDecode(0, latent, label), Leg(settings))


def gaussian(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2)).astype(np.float32)


def npy(count: int = 40, seed: int = 0) -> bytes:
    return to_npy(gaussian(count, seed))


def node_toml(**given) -> str:
    """The node.toml of north's source node, or another's with what is given."""
    usual = {"institution": "north.example", "name": "node-1", "roles": ("source",), "listen": "127.0.0.1:0"}
    model = ModelSection(domain=given.pop("domain", "moons"))
    return render_node_toml(NodeSection(**{**usual, "address": "localhost:7443", **given}), model)


def make_config(folder, institution: str, role: str, *, domain: str = "moons", **settings) -> NodeConfig:
    """A node.toml beside `state/`, whose port is whatever is free; `settings` replace the template's comments."""
    text = node_toml(institution=institution, roles=(role,), domain=domain)
    for name, value in {"max_evaluations": 10_000, "threads": 1, **settings}.items():
        text, found = re.subn(rf"(?m)^# {name} = .*$", f"{name} = {value}", text)
        if not found:  # a limit that the template does not show
            text = text.replace("[limits]", f"[limits]\n{name} = {value}", 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "node.toml").write_text(text)
    config = NodeConfig.load(folder / "node.toml")
    begin_trust(config.paths.state)
    return config


def make_institution(folder, name: str) -> Institution:
    return Institution(name, folder / "state")


def make_context(config: NodeConfig, institution: Institution, engine: ServingParty | None) -> NodeContext:
    """What the roles of a node get, with the engine warm unless there is none."""
    node = NodeContext(config, institution.store, AuditLog(NodeStore(config.paths.store)), Metrics())
    if engine is not None:
        node.set_engine(engine)
    return node


def save_model(config: NodeConfig, name: str = "tiny") -> Bundle:
    return save_bundle(config.paths.bundle, manifest(name), state())

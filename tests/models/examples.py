"""Small models that tests save, load and damage."""

import torch

from ddib_fed.models.bundle import Bundle, make_bundle
from ddib_fed.models.manifest import Distilled, DistilledError, Manifest
from ddib_fed.models.sidecars import Errors, TunedLeg
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import MlpConfig, SyntheticConfig

SMALL = MlpConfig(width=16, blocks=1, embedding=8, features=4)


def manifest(network: MlpConfig | SyntheticConfig = SMALL) -> Manifest:
    return Manifest(name="small", domain="moons", sample_shape=(2,), network=network)


def state(network: MlpConfig | SyntheticConfig = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    made = build_network(network).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in made.items()}


# Bundles of flow maps with random weights, for tests that need no accuracy


ERROR = DistilledError(evaluations=8, encode=0.1, encode_p95=0.2, decode=0.1, decode_p95=0.2, round_trip=0.1)
DISTILLED = Distilled(
    teacher="0" * 64, teacher_name="own", solver="unipc", evaluations=96, samples=10, grid="default",
    errors=(ERROR,),
)  # fmt: skip


def distilled(network: MlpConfig, *, std: float = 0.1, **fields) -> Bundle:
    """A flow map of points with random weights; with `std` 0 it answers 0."""
    torch.manual_seed(0)
    module = build_network(network)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    named = {"name": "own", "domain": "own", **fields}
    manifest = Manifest(sample_shape=(network.dim,), network=network, distilled=DISTILLED, **named)
    return make_bundle(manifest, module.state_dict())


LEG_ERROR = Errors(mean=0.02, low=0.01, high=0.03, median=0.015, p99=0.1)


def tuned_leg(stage="decode", evaluations=4, **changes):
    fields = {
        "stage": stage, "evaluations": evaluations, "order": 3, "coordinates": "angle",
        "lams": tuple(5.3 - 10.3 * i / evaluations for i in range(evaluations + 1)), "held_out": 10,
        "error": LEG_ERROR, "default_error": LEG_ERROR, "yardstick": 48, "yardstick_error": LEG_ERROR,
        "reference_gap": 1e-6,
    }  # fmt: skip
    return TunedLeg.model_validate({**fields, **changes})

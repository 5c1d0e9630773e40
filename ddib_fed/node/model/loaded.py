"""A warm model of a node, with what belongs to it alone: its softening noise and the index of its training pictures."""

from __future__ import annotations

from dataclasses import dataclass

from ddib_fed.bridge.serving import ServingParty
from ddib_fed.bridge.softening import Softener, load_key
from ddib_fed.metrics.attacks.training_index import TrainingIndex
from ddib_fed.node.config import NodeConfig


@dataclass(slots=True)
class LoadedModel:
    """A warm model, and how many pieces of work use it.

    Attributes:
        engine: Computes with it.
        softener: Its softening noise; None for points.
        training_index: Recognises its training pictures; None if the policy asks for none, or none can be used.
        users: Pieces of work.
    """

    engine: ServingParty
    softener: Softener | None
    training_index: TrainingIndex | None
    users: int = 0


def load_model(config: NodeConfig, engine: ServingParty, index: TrainingIndex | None) -> LoadedModel:
    """A warm model that nobody uses yet.

    Args:
        config: Of the node.
        engine: Computes with the model.
        index: Of its training pictures.

    Raises:
        ConfigError: It is a picture model, and the softening key cannot be used.
    """
    bundle = engine.model.bundle
    if bundle.manifest.sample_kind != "picture":
        return LoadedModel(engine, None, index)
    return LoadedModel(engine, Softener(load_key(config.paths.softening_key), bundle.digest), index)

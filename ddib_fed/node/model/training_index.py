"""The index of a model's training pictures in the folder that `[policy] memorised` names: opened and checked.

The folder has a file for each model, by its digest, so that a node finds the right one after another model was
activated or an earlier one came back.
"""

from __future__ import annotations

import logging
import shlex

from ddib_fed.errors import ConfigError, FileMissing, InputError, ModelNotFound
from ddib_fed.files import read_private
from ddib_fed.metrics.attacks.training_index import MAX_BYTES, TrainingIndex, file_name, parse_index
from ddib_fed.models.bundle import Bundle
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model.library import place_of

log = logging.getLogger(__name__)


def open_index(config: NodeConfig, bundle: Bundle) -> TrainingIndex | None:
    """The index of a model's training pictures; None if the policy names no folder, or the node is no target.

    Args:
        config: Of the node.
        bundle: The model.

    Raises:
        ConfigError: The file is missing, damaged, readable by others, or of another model; or the model decodes no
            pictures of the size that it was trained on.
    """
    if not config.policy.memorised or "target" not in config.node.roles:
        return None
    named = f"memorised = {config.policy.memorised!a} in [policy] of {config.path} cannot be used"
    if bundle.manifest.sample_kind != "picture":
        raise ConfigError(f"{named}: the model is one of points", hint="remove the line")
    if bundle.tile is not None:
        raise ConfigError(
            f"{named}: scenes are larger than the training pictures",
            hint="remove the line, or scene in [model]",
        )
    path, again = config.folder / config.policy.memorised / file_name(bundle.digest), _command(config, bundle)
    try:
        found = parse_index(read_private(path, hint=again, max_bytes=MAX_BYTES), str(path))
    except (ConfigError, FileMissing) as error:
        raise ConfigError(f"{named}: {error.detail}", hint=error.hint or again) from error
    except InputError as error:
        raise ConfigError(f"{named}: {error.detail}", hint=again) from error
    if found.facts.model_sha256 != bundle.digest:
        raise ConfigError(
            f"{named}: {path} is the index of the model {found.facts.model_sha256[:12]}", hint=again
        )
    return found


def find_index(config: NodeConfig, bundle: Bundle) -> TrainingIndex | None:
    """As `open_index`; None also if the file cannot be used, which is logged."""
    try:
        return open_index(config, bundle)
    except ConfigError as error:
        log.warning(
            "the model %s is not used for decoding: %s (%s)", bundle.digest[:12], error.detail, error.hint
        )
        return None


def described(index: TrainingIndex) -> str:
    """The index in a few words, for the operator."""
    return (
        f"{len(index.rows)} training pictures (index {index.sha256[:12]}, below {index.facts.threshold:.3g})"
    )


def _command(config: NodeConfig, bundle: Bundle) -> str:
    """Makes the index that the node looks for."""
    try:
        model = place_of(config, bundle.digest)
    except ModelNotFound:
        model = config.paths.bundle
    folder = config.folder / config.policy.memorised
    return shlex.join(
        [
            "ddib",
            "privacy",
            "index",
            "--model",
            str(model),
            "--training",
            "FOLDER",
            "--out",
            str(folder),
            "--force",
        ]
    )

"""The index that `[policy] memorised` names: opened, checked, and held against the model that is served."""

from __future__ import annotations

import shlex

from ddib_fed.errors import ConfigError, FileMissing, InputError
from ddib_fed.files import read_private
from ddib_fed.metrics.attacks.training_index import MAX_BYTES, TrainingIndex, parse_index
from ddib_fed.models.bundle import Bundle
from ddib_fed.node.config import NodeConfig


def open_index(config: NodeConfig, bundle: Bundle) -> TrainingIndex | None:
    """The index of the served model's training pictures; None where the policy names none, or for no target.

    Args:
        config: Of the node.
        bundle: The model that it serves.

    Raises:
        ConfigError: The file is missing, damaged, open to others, or of another model; or the model decodes no pictures
            of the size that it was trained on.
    """
    if not config.policy.memorised or "target" not in config.node.roles:
        return None
    path = config.folder / config.policy.memorised
    named = f"memorised = {config.policy.memorised!a} in [policy] of {config.path} cannot be used"
    again = f"ddib privacy index --model {shlex.quote(str(config.paths.bundle))} --training FOLDER --out "
    again += f"{shlex.quote(str(path))} --force"
    if bundle.manifest.sample_kind != "picture":
        raise ConfigError(f"{named}: the model is one of points", hint="remove the line")
    if bundle.tile is not None:
        raise ConfigError(
            f"{named}: scenes are larger than the training pictures",
            hint="remove the line, or scene in [model]",
        )
    try:
        found = parse_index(read_private(path, hint=again, max_bytes=MAX_BYTES), str(path))
    except (ConfigError, FileMissing) as error:
        raise ConfigError(f"{named}: {error.detail}", hint=error.hint) from error
    except InputError as error:
        raise ConfigError(f"{named}: {error.detail}", hint=again) from error
    if found.facts.model_sha256 != bundle.digest:
        raise ConfigError(
            f"{named}: {path} is of the model {found.facts.model_sha256[:12]}, and {bundle.digest[:12]} is served",
            hint=again,
        )
    return found


def described(index: TrainingIndex) -> str:
    """The index in a few words, for the operator."""
    return (
        f"{len(index.rows)} training pictures (index {index.sha256[:12]}, below {index.facts.threshold:.3g})"
    )

"""Training of the node's own model from the `[train]` table of node.toml."""

from __future__ import annotations

import shlex

from ddib_fed.datasets.synthetic import DOMAINS
from ddib_fed.errors import ConfigError
from ddib_fed.node.config import NodeConfig
from ddib_fed.runs.training import train_at_terminal
from ddib_fed.terminal import say
from ddib_fed.training.config import SHIPPED


def train_node(config: NodeConfig, *, force: bool = False) -> None:
    """Train into the bundle that node.toml names, resuming an unfinished run of the same settings."""
    if not config.train.names_data and config.model.domain not in {*DOMAINS, *SHIPPED}:
        raise ConfigError(
            f"{config.path} does not say what to train on",
            hint='write images = "FOLDER" (pictures) or data = "points.npy" under [train]',
        )
    settings = config.train.config(
        config.folder,
        config.model.domain,
        name=config.model.bundle_domain or config.model.domain,
        threads=config.engine.threads or 1,
        command=f"{config.command} train --config node.toml",
    )
    bundle = train_at_terminal(settings, config.paths.bundle, resume=not force, force=force)
    if bundle is None:
        return
    say(
        f"model of {config.model.domain}: {bundle.manifest.parameters:,} parameters, digest {bundle.digest[:12]}, "
        f"in {config.paths.bundle}",
        f"next: {config.command} serve --config {shlex.quote(str(config.path))}",
        err=True,
    )

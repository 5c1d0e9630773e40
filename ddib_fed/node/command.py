"""The commands of a node, `train | serve | check --config node.toml`; the same for every role."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import click

from ddib_fed.errors import ConfigError, DdibError
from ddib_fed.evaluation.processes import require_alone
from ddib_fed.node.config import NodeConfig, Role
from ddib_fed.node.log_format import JsonFormatter, TextFormatter
from ddib_fed.node.logs import route, silence_grpc
from ddib_fed.terminal import relay, say, say_labelled

log = logging.getLogger(__name__)

CONFIG = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("node.toml"),
    show_default=True,
    help="The node's configuration, as `ddib init node` writes it.",
)


def set_up_logging(config: NodeConfig) -> None:
    """Log to stderr as the configuration says."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if config.log.format == "json" else TextFormatter())
    route(handler, config.log.level)


def node_command(role: Role | None) -> click.Group:
    """The group of commands of one role, or of whatever roles node.toml lists when `role` is None."""

    @click.group(help=_help(role), context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="ddib-fed")
    def group() -> None:
        require_alone("a node")

    @group.command()
    @CONFIG
    @click.option("--force", is_flag=True, help="Replace a finished model.")
    def train(path: Path, force: bool) -> None:
        """Train the node's own model on its own data, into the bundle that node.toml names."""
        _train(_load(path, role), force=force)

    @group.command()
    @CONFIG
    @click.option(
        "--role",
        "roles",
        multiple=True,
        type=click.Choice(["source", "target"]),
        hidden=role is not None,
        help="Serve these roles instead of those in node.toml.",
    )
    def serve(path: Path, roles: tuple[Role, ...]) -> None:
        """Serve until SIGTERM, which drains and exits 0; a second one stops at once."""
        config = _load(path, role)
        if roles:
            config = config.with_roles(roles)
        set_up_logging(config)
        silence_grpc()
        from ddib_fed.node import daemon  # imports grpc

        try:
            sys.exit(daemon.serve(config))
        except DdibError as error:
            if config.log.format == "text":
                raise
            sys.exit(_logged(error, f"{config.command} check --config {path}"))

    @group.command()
    @CONFIG
    def check(path: Path) -> None:
        """Say whether the node could serve: identity, peers, model, port; changes nothing."""
        from ddib_fed.node import daemon

        findings = daemon.check(_load(path, role))
        for what, finding in findings:
            say(f"{what:10} {finding}")
        if any(not finding.startswith("ok") for _, finding in findings):
            raise ConfigError(
                "the node cannot serve yet", hint="mend the lines above that do not begin with ok"
            )

    return group


def _logged(error: DdibError, otherwise: str) -> int:
    """Say in the log, on one line, why the node ends; the exit code."""
    log.error("%s  [%s]; try: %s", error.detail, error.reason, error.hint or otherwise)
    return int(error.exit_code)


def _help(role: Role | None) -> str:
    what = {
        "source": "The source node: encodes pictures of this institution's clients to latents.",
        "target": "The target node: decodes latents of admitted peers.",
        None: "A node with the roles that node.toml lists, on one model and one port.",
    }
    return what[role]


def _load(path: Path, role: Role | None) -> NodeConfig:
    config = NodeConfig.load(path)
    if role is not None and role not in config.node.roles:
        raise ConfigError(
            f"{path} is for the role {', '.join(config.node.roles)}, not {role}",
            hint=f"ddib-{config.node.roles[0]}-node, or add {role!r} to node.roles",
        )
    return config.with_roles((role,)) if role is not None else config


def _train(config: NodeConfig, *, force: bool) -> None:
    """Train with a progress bar; everything but the bar is `ddib_fed.training`."""
    from ddib_fed.node.training import train_node

    train_node(config, force=force)


def run(group: Callable[..., object]) -> None:
    """Run a group as a program: an error is two lines on stderr and its documented exit code."""
    try:
        group(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        relay(error.show)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except DdibError as error:
        say_labelled("error: ", f"{error.detail}  [{error.reason}]")
        if error.hint:
            say_labelled("  try:  ", error.hint)
        sys.exit(int(error.exit_code))

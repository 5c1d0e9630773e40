"""The commands of a node, `train | serve | check --config node.toml`, and its log as text or JSON lines.

Imports no grpc: its own log has to be turned off before.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import click

from ddib_fed.errors import ConfigError, ExitCode, UsageError
from ddib_fed.names import CONFIG_VARIABLE, NODE_FILE
from ddib_fed.node.config import NodeConfig, Role
from ddib_fed.node.operator import Node
from ddib_fed.terminal import escape, explained, leads, relay, require_alone, say, say_labelled

if TYPE_CHECKING:
    from ddib_fed.node.daemon import StepResult

log = logging.getLogger(__name__)

OWN: Final = ("ddib_fed", "source_node", "target_node")
# Their errors are also raised as exceptions, without the picture's metadata.
READERS: Final = ("PIL", "tifffile")

_HELP: dict[Role | None, str] = {
    "source": "The source node: encodes pictures of this institution's clients to latents.",
    "target": "The target node: decodes latents of admitted peers.",
    None: "A node with the roles that node.toml lists.",
}
CONFIG = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar=CONFIG_VARIABLE,
    default=Path(NODE_FILE),
    metavar="FILE",
    help="The node's configuration, as `ddib init node` writes it; default: $DDIB_CONFIG, or ./node.toml.",
)


def node_command(role: Role | None) -> click.Group:
    """Return the commands of a node that has this role, or of any node."""

    @click.group(help=_HELP[role], context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="ddib-fed")
    def group() -> None:
        pass

    @group.command()
    @CONFIG
    @click.option(
        "--force", is_flag=True, help="Start over, replacing any existing run; otherwise the run is resumed."
    )
    def train(path: Path, force: bool) -> None:
        """Train the node's own model on its own data, into the bundle that node.toml names.

        The table [train] accepts the options of `ddib model train`, and the names that its --set takes. A stopped or
        killed run is resumed by the same command and ends bit for bit as an uninterrupted one. Training on pictures can
        use several processes: torchrun --nproc-per-node 2 -m source_node train --config node.toml (for a target node:
        -m target_node).
        """
        _train(_load(path, role), force=force)

    @group.command()
    @CONFIG
    @click.option("--pair", is_flag=True, help="Pair first, as `ddib pair --listen` does.")
    @click.option(
        "--pair-with",
        nargs=2,
        metavar="HOST:PORT CODE",
        help="Pair first, as `ddib pair HOST:PORT CODE` does.",
    )
    def serve(path: Path, pair: bool, pair_with: tuple[str, str] | None) -> None:
        """Serve until SIGTERM, which drains and exits 0; a second one stops at once."""
        require_alone("serving")
        silence_grpc()
        config = _load(path, role)
        set_up_logging(config.log.level, config.log.format)
        try:
            if pair or pair_with:
                _pair(config, shows_code=pair, dialled=pair_with)
            sys.exit(Node(config).serve())
        except click.Abort:
            raise
        except Exception as raised:
            error = explained(raised)
            if config.log.format == "text":
                raise error from raised
            otherwise = f"{config.command} check --config {shlex.quote(str(path))}"
            log.error("%s  [%s]; try: %s", error.detail, error.reason, error.hint or otherwise)  # noqa: TRY400 - text alone
            sys.exit(int(error.exit_code))

    @group.command()
    @CONFIG
    def check(path: Path) -> None:
        """Check whether the node could serve: run each step of a start, changing nothing."""
        require_alone("checking a node")
        silence_grpc()
        findings = Node(_load(path, role)).check()
        for finding in findings:
            _show(finding)
        wrong = [finding.step for finding in findings if finding.problem is not None]
        if wrong:
            raise ConfigError(
                f"the node cannot serve yet: {', '.join(wrong)}",
                hint="correct the lines that do not start with ok",
            )

    return group


def _load(path: Path, role: Role | None) -> NodeConfig:
    config = NodeConfig.load(path)
    if role is not None and role not in config.node.roles:
        raise ConfigError(
            f"{path} is for the role {', '.join(config.node.roles)}, not {role}",
            hint=f"ddib-{config.node.roles[0]}-node, or add {role!r} to node.roles",
        )
    return config


def _train(config: NodeConfig, *, force: bool) -> None:
    from ddib_fed.datasets import DOMAINS
    from ddib_fed.training.config import SHIPPED
    from ddib_fed.training.run import train_at_terminal

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
    if leads():
        say(
            f"model of {config.model.domain}: {bundle.manifest.parameters:,} parameters, digest {bundle.digest[:12]}, "
            f"in {config.paths.bundle}",
            f"next: {config.command} serve --config {shlex.quote(str(config.path))}",
            err=True,
        )


def _pair(config: NodeConfig, *, shows_code: bool, dialled: tuple[str, str] | None) -> None:
    if shows_code and dialled:
        raise UsageError("one side waits with --pair, the other comes with --pair-with")
    on_code = say if shows_code else None
    paired = Node(config).peers.pair(
        *dialled or (), on_code=on_code, on_stranger=lambda line: say(line, err=True)
    )
    say(*paired.describe())
    for warning in paired.warnings:
        say(warning, err=True)
    log.info("admitted %s", paired.other.identity)


def _show(finding: StepResult) -> None:
    """Print one step of a start: ok and its finding, or its problem and what to do."""
    if finding.problem is None:
        say(f"{finding.step:12} ok {finding.text}")
        for warning in finding.warnings:
            say(f"{'':12} warning: {warning}")
        return
    say(f"{finding.step:12} {finding.problem.detail}  [{finding.problem.reason}]")
    if finding.problem.hint:
        first, *rest = finding.problem.hint.split("\n")
        say(f"{'':12} try: {first}", *(f"{'':17} {line.strip()}" for line in rest))


def run(group: Callable[..., object]) -> None:
    """Run a group as a program: an error is two lines on stderr and its documented exit code; its files are private."""
    os.umask(0o077)
    try:
        group(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        relay(error.show)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted", err=True)
        sys.exit(ExitCode.CANCELLED)
    except Exception as raised:  # noqa: BLE001 - the outer edge: any exception becomes a message and a code
        failure = explained(raised)
        say_labelled("error: ", f"{failure.detail}  [{failure.reason}]")
        if failure.hint:
            say_labelled("  try:  ", failure.hint)
        sys.exit(int(failure.exit_code))


def silence_grpc() -> None:
    """Turn off the C core's own log and its traces, which hold messages; before the first import of grpc."""
    os.environ["GRPC_VERBOSITY"] = "NONE"
    for name in ("GRPC_TRACE", "GRPC_STACKTRACE_MINLOGLEVEL"):
        os.environ.pop(name, None)


def set_up_logging(level: str, output_format: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if output_format == "json" else TextFormatter())
    route(handler, level)


def route(handler: logging.Handler, level: str) -> None:
    """Send logs, warnings and uncaught exceptions to one handler."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)
    for name in OWN:
        logging.getLogger(name).setLevel(threshold)
    for name in READERS:
        reader = logging.getLogger(name)
        reader.propagate = False
        reader.addHandler(logging.NullHandler())
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the process ends by an exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None and not issubclass(hook.exc_type, SystemExit):
        name = hook.thread.name if hook.thread is not None else "?"
        trace = (hook.exc_type, hook.exc_value, hook.exc_traceback)
        log.error("thread %s ended by an exception", name, exc_info=trace)


class TextFormatter(logging.Formatter):
    """A line for people, and below it the traceback, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return escape(super().formatMessage(record))

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802 - logging's name
        return "\n".join(f"    {escape(line)}" for line in super().formatException(ei).split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object per line, for log collectors; exact, because JSON escapes control characters itself."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            **getattr(record, "fields", {}),  # the `extra` of a call, beside its message
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)

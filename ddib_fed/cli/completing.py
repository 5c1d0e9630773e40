"""What a shell completes: domains, jobs, classes, models and peers by name, read when Tab is pressed.

A completion is silent: whatever fails gives no words. The node is asked once, for `PATIENCE_S` at most.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from click import Context, Parameter
from click.shell_completion import CompletionItem

from ddib_fed.names import NODE_FILE

if TYPE_CHECKING:
    from ddib_fed.client.client import Client
    from ddib_fed.client.views import Domains

Answer = TypeVar("Answer")
Items = list[CompletionItem]
PATIENCE_S = 1.5
"""Longer than this nobody waits for a Tab."""
JOBS = 200


def targets(ctx: Context, param: Parameter, incomplete: str) -> Items:
    """INSTITUTION/DOMAIN of each target, with its status."""
    del param
    found = _domains(ctx)
    words = ((each.target, each.status) for each in found.targets if each.domain) if found else ()
    return _matching(words, incomplete)


def target_classes(ctx: Context, param: Parameter, incomplete: str) -> Items:
    """Classes of the target that is given before, or of all."""
    del param
    found, asked = _domains(ctx), str(ctx.params.get("target") or "")
    named = [each for each in found.targets if asked in {"", each.target}] if found else []
    return _matching(((name, each.target) for each in named for name in each.class_names), incomplete)


def source_classes(ctx: Context, param: Parameter, incomplete: str) -> Items:
    """Classes of the own node's model."""
    del param
    found = _domains(ctx)
    return _matching(((name, "") for name in found.class_names) if found else (), incomplete)


def jobs(ctx: Context, param: Parameter, incomplete: str) -> Items:
    """Ids of this client's newest jobs, with state and target."""
    del param
    found = _asked(ctx, lambda client: client.list(JOBS)) or ()
    return _matching(((each.job_id, f"{each.state.lower()}, {each.target}") for each in found), incomplete)


def shipped_models(ctx: Context, param: Parameter, incomplete: str) -> Items:
    """Names of the models that ship with the package."""
    del ctx, param
    from ddib_fed.models.catalogue import shipped_names

    return _matching(((name, "ships with the package") for name in shipped_names()), incomplete)


def models(ctx: Context, param: Parameter, incomplete: str) -> Items:
    return shipped_models(ctx, param, incomplete) or [CompletionItem(incomplete, type="dir")]


def peer_targets(ctx: Context, param: Parameter, incomplete: str) -> Items:
    admitted = peers(ctx, param, incomplete)
    return targets(ctx, param, incomplete) or [CompletionItem(f"{each.value}/") for each in admitted]


def calibrations(ctx: Context, param: Parameter, incomplete: str) -> Items:
    """Digests of the calibrations of the node in --config."""
    del param
    with contextlib.suppress(Exception):
        from ddib_fed.node.config import NodeConfig
        from ddib_fed.trust.calibrations.store import CalibrationStore

        found = [
            (each.sha256.hex()[:12], each.signed.calibration)
            for each in CalibrationStore(NodeConfig.load(_config_path(ctx)).paths.calibrations).list()
        ]
        words = ((digest, f"{made.kind}, to {made.target.institution}") for digest, made in found)
        return _matching(words, incomplete)
    return []


def peers(ctx: Context, param: Parameter, incomplete: str) -> Items:
    """Institutions that the node in --config admits."""
    del param
    with contextlib.suppress(Exception):
        from ddib_fed.node.admitting import peer_store
        from ddib_fed.node.config import NodeConfig

        store = peer_store(NodeConfig.load(_config_path(ctx)))
        return _matching(((each.institution, each.address) for each in store.list()), incomplete)
    return []


def _config_path(ctx: Context) -> Path:
    return Path(ctx.params.get("config_path") or NODE_FILE)


def _domains(ctx: Context) -> Domains | None:
    return _asked(ctx, lambda client: client.domains())


def _asked(ctx: Context, question: Callable[[Client], Answer]) -> Answer | None:
    """The node's answer; None if there is none in time, or no profile."""
    with contextlib.suppress(Exception):
        from ddib_fed.client.client import Client
        from ddib_fed.client.profile import Profile

        client = Client(Profile.load(ctx.params.get("profile_path")), patience_s=0)
        timer = threading.Timer(PATIENCE_S, client.abort)
        timer.daemon = True
        timer.start()
        try:
            return question(client)
        finally:
            timer.cancel()
            client.close()
    return None


def _matching(words: Iterable[tuple[str, str]], incomplete: str) -> Items:
    return [CompletionItem(word, help=text or None) for word, text in words if word.startswith(incomplete)]

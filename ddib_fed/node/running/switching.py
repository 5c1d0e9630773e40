"""The warm models of a running node: another becomes active while work on the one before is finished."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ddib_fed.bridge.serving import ServingParty
from ddib_fed.errors import ConfigError, DdibError, StateConflict
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model.hosted import open_engine
from ddib_fed.node.model.library import choose, configured_digest, installed, place_of
from ddib_fed.node.role import NodeContext, RoleService

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""The periodic check has ended by then; another switch, or a start, need not have."""


class Models:
    """Switches models, and closes those that nothing needs any more.

    Args:
        node: Whose models.
        roles: Ask them which models accepted work began with.
    """

    def __init__(self, node: NodeContext, roles: Sequence[RoleService]) -> None:
        self._node = node
        self._roles = roles
        self._switching = threading.Lock()
        """Who opens, warms or closes a model has it."""
        self._settling = threading.Lock()
        """Who reads what a model is served under, and puts it to use, has it; never while a model is loaded."""

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Inside, no model becomes the active one, and none is given an index: the policy can be changed.

        It waits for a switch that is at its end, at most as long as reading an index of training pictures takes.
        """
        with self._settling:
            yield

    def begin(self, engine: ServingParty) -> None:
        """At start: serve the first model, and have those with which accepted jobs began, as far as they are there.

        Raises:
            ConfigError: As `NodeContext.prepare`.
        """
        with self._switching:
            with self._settling:
                self._node.set_engine(engine)
            self._load_needed()

    def activate(self, digest: str) -> str:
        """Serve a model of this node from now on.

        It is loaded and warm, and the choice on the disk, before anything changes for those who call.

        Args:
            digest: Of the bundle, 64 hexadecimal digits.

        Returns:
            The digest of the model that was active.

        Raises:
            StateConflict: Another switch is under way, or the model is of other samples, which accepted jobs are not.
            NotReady: No model is loaded yet.
            DdibError: It cannot be loaded.
        """
        if not self._switching.acquire(timeout=PATIENCE_S):
            raise StateConflict("another model is being activated", hint="ddib status")
        try:
            before = self._node.active_digest
            if digest != before:
                self._switch(digest)
            return before
        finally:
            self._switching.release()

    def _switch(self, digest: str) -> None:
        before = self._node.running_engine
        engine = self._open(digest)
        try:
            _check_alike(before, engine)
            with self._settling:
                loaded = self._node.prepare(engine)
                values = {"sha256": digest, "before": before.model.bundle.digest}
                with self._node.audit.doing("model_activated", [values]):
                    choose(self._node.config, digest)
                self._node.make_active(loaded)
        except BaseException:
            if not self._node.is_warm(digest):
                engine.close()
            raise
        log.info("serving %s, no longer %s", digest[:12], before.model.bundle.digest[:12])

    def _open(self, digest: str) -> ServingParty:
        """The model, warm: one that is still loaded for earlier work, or from its folder.

        Under `_switching`, without which `retire` could close what this returns.
        """
        with suppress(DdibError), self._node.serving(digest) as node:
            return node.running_engine
        config = self._node.config
        engine = open_engine(config, place=place_of(config, digest))
        if engine.model.bundle.digest != digest:
            engine.close()
            raise ConfigError(f"the model installed as {digest[:12]} is {engine.model.bundle.digest[:12]}")
        return engine

    def _load_needed(self) -> None:
        for digest in self._needed():
            if self._node.is_warm(digest) or not _has(self._node.config, digest):
                continue
            try:
                self._keep_warm(self._open(digest))
                log.info("loaded %s as well: accepted jobs began with it", digest[:12])
            except DdibError as error:
                log.warning(
                    "the model %s cannot be loaded, its jobs begin again: %s", digest[:12], error.detail
                )

    def _keep_warm(self, engine: ServingParty) -> None:
        """Have it, or close it."""
        try:
            with self._settling:
                self._node.keep_warm(engine)
        except BaseException:
            engine.close()
            raise

    def retire(self) -> None:
        """Close the models that are no longer active, in use, or needed; while one is switched to, none.

        A switch may be about to make any warm model the active one. What is left is closed by a later call.
        """
        if len(self._node.all_models()) < 2:
            return  # as nearly always; who needs which is not asked
        if not self._switching.acquire(blocking=False):
            return
        try:
            going = self._node.retire(self._needed())
        finally:
            self._switching.release()
        for engine in going:
            log.info("closed %s: nothing needs it any more", engine.model.bundle.digest[:12])
            engine.close()

    def close(self) -> None:
        """Close all."""
        for engine in self._node.all_models():
            engine.close()

    def _needed(self) -> frozenset[str]:
        return frozenset(digest for role in self._roles for digest in role.models_needed())


def _has(config: NodeConfig, digest: str) -> bool:
    return digest == configured_digest(config) or digest in installed(config)


def _check_alike(before: ServingParty, after: ServingParty) -> None:
    """Accepted jobs were checked against the model of before: another kind or size needs a drained node.

    Raises:
        StateConflict: It is of another.
    """
    own, other = before.model.manifest, after.model.manifest
    kinds = [(each.sample_kind, tuple(each.sample_shape), each.num_classes) for each in (own, other)]
    if kinds[0] != kinds[1]:
        raise StateConflict(
            f"the model is of samples {kinds[1]} (kind, shape, classes), and {kinds[0]} are served",
            hint="ddib drain, put the bundle at [model] bundle, and start the node",
        )
